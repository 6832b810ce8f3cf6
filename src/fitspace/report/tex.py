"""Plain text as LaTeX."""

from __future__ import annotations

_LOW, _HIGH = "₀₁₂₃₄₅₆₇₈₉", "⁰¹²³⁴⁵⁶⁷⁸⁹"
_NAMED = {
    **{sign: f"$_{digit}$" for digit, sign in enumerate(_LOW)},
    **{sign: f"$^{digit}$" for digit, sign in enumerate(_HIGH)}, "⁻": r"$^-$",
    "ω": r"$\omega$", "τ": r"$\tau$", "ε": r"$\varepsilon$", "γ": r"$\gamma$", "σ": r"$\sigma$",
    "→": r"$\to$", "±": r"$\pm$", "·": r"$\cdot$", "≥": r"$\ge$", "≤": r"$\le$",
    "−": r"$-$", "×": r"$\times$", "–": "--", "’": "'", "∞": r"$\infty$", "‖": r"$\|$",
    "α": r"$\alpha$", "β": r"$\beta$", "δ": r"$\delta$", "Δ": r"$\Delta$", "η": r"$\eta$",
    "μ": r"$\mu$", "λ": r"$\lambda$",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def escaped(text: str) -> str:
    """Text for LaTeX: special characters escaped, Greek letters and signs by name."""
    return "".join(_NAMED.get(character, character) for character in text)
