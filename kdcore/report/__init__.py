"""Tables, claims, figures and pages, made of a paper's sheet and records. Nothing here trains, nothing imports papers or trials."""
