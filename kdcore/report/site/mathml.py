"""LaTeX as MathML, which browsers show without a script or a font of the page."""

import re

from latex2mathml import converter
from markupsafe import Markup, escape

# What latex2mathml leaves as it stands.
MISSING = {
    re.compile(r"(\\[bB]igg?[lr]?)\s*\\\|"): "\\1\N{DOUBLE VERTICAL LINE}",
    re.compile(r"\\arg(?![a-zA-Z])"): r"\\operatorname{arg}",
    re.compile(r"\\sim(?![a-zA-Z])"): "\N{TILDE OPERATOR}",
}


def mathml(latex: str, block: bool = False) -> Markup:
    """The equation as a <math> element, with its LaTeX as alternative text; LaTeX that cannot be converted is shown as code."""
    text = latex.strip()
    for pattern, replacement in MISSING.items():
        text = pattern.sub(replacement, text)
    try:
        made = converter.convert(text, display="block" if block else "inline")
    except Exception:  # the converter raises errors of many kinds
        made = "\\"
    if "\\" in made:  # a command that it does not know
        return Markup("<code>{}</code>").format(latex)
    made = re.sub(r"(<m[io]>(?:log|exp|cos|arg|min|max)</m[io]>)(?=<m(?!o))", r'\1<mspace width="0.167em" />', made)  # "log x", not "logx"
    return Markup(made.replace("<math ", f'<math alttext="{escape(latex.strip())}" ', 1))
