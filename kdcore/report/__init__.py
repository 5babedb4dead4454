"""Tables, claims, figures and pages, made from a paper's sheet and records. Nothing here trains or imports papers or trials."""
