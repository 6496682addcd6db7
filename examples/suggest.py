"""Suggest networks for budgets and limits, and build one.

    python examples/suggest.py

Suggesting needs numpy only; building needs torch and timm.
"""

from tinynet_search import suggest_rdw


def main() -> None:
    # A budget c is a fraction of the baseline's multiply-adds (EfficientNet-B0: 385.8M).
    for c in (0.5, 0.25, 0.13):
        r, d, w = suggest_rdw(c)
        print(f"c = {c}: r = {r:.3f}, d = {d:.3f}, w = {w:.3f}")

    # Limits in absolute numbers: the largest network on the formula that exceeds none of them.
    suggestion = suggest_rdw(macs=50e6, params=2.4e6)
    print(f"at most 50M multiply-adds and 2.4M parameters: {suggestion.macs / 1e6:.1f}M and")
    print(f"{suggestion.network.params / 1e6:.2f}M; the limit is {', '.join(suggestion.binding)}")

    # A torch module with timm's parameter names.
    model = suggestion.build()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"input {suggestion.resolution} x {suggestion.resolution} pixels, {count} parameters")


if __name__ == "__main__":
    main()
