"""The page at `/`: one file that loads nothing from elsewhere, and may run no script but its own."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from flashvlm import page
from flashvlm.options import AskOptions
from flashvlm.selection import SELECTORS
from flashvlm.serve.media import samples

# The budgets of the slider: steps that look alike.
SHARES = ("1%", "2%", "3%", "5%", "7%", "10%", "15%", "20%", "30%", "40%", "50%", "75%", "100%")


def front(model: str, options: AskOptions, limit: int) -> tuple[bytes, dict[str, str]]:
    """The page and its headers.

    Args:
        model: what it is called.
        options: what applies unless a request says otherwise.
        limit: the most bytes of a video.
    """
    templates = page.environment()
    script = "".join(templates.get_template(name).render() for name in ("report.js", "serve.js"))
    html = templates.get_template("serve.html").render(
        model=model,
        samples=samples(),
        selectors=SELECTORS,
        selector=options.selector,
        shares=SHARES,
        several=False,
        layers=[page.layer(name) for name in page.LAYERS],
        page={"shares": SHARES, "keep": str(options.keep), "limit": limit},
        script=script,
    )
    return html.encode(), {"content-security-policy": _policy(script), "referrer-policy": "no-referrer"}


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules: dict[str, Any] = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
