"""Old names in recipes and checkpoints, so that files written by earlier versions stay readable."""

from collections.abc import Collection
from typing import Any

KEYS = {"average_decay": "ema_decay", "reduction": "distance"}
"""Old key → current key of any section."""

VALUES: dict[Any, dict[str, str]] = {"norm": {"per_image": "instance"}}
"""Key → old value → current value."""

RECIPES = {"alone": "from-scratch", "mnist-2-4-8": "mnist-u2", "fashion-mnist-1-2-4": "fashion-mnist-u1"}
"""Old name → current name of a shipped recipe."""


def update_names(content: Any, known_keys: Collection[str]) -> Any:
    """A copy of a recipe or a checkpoint's header with old keys and values replaced by the current ones.

    An old key is replaced only if it is unknown, its current name is known, and the section does not have both.
    """
    if isinstance(content, list):
        return [update_names(item, known_keys) for item in content]
    if not isinstance(content, dict):
        return content
    updated = {}
    for old, value in content.items():
        key = KEYS.get(old, old)
        if old in known_keys or key not in known_keys or key in content:
            key = old
        values = VALUES.get(key, {})
        updated[key] = values.get(value, value) if isinstance(value, str) else update_names(value, known_keys)
    return updated


def update_state(state: dict[str, Any]) -> dict[str, Any]:
    """A training state of format 2, by which an older version's run is resumed, in the current format.

    Format 2 calls the EMA's weights ``average`` and stores Adam's moments as lists.
    """
    if state.get("format") != 2:
        return state
    return state | {
        "format": 3,
        **{role: _update_train_state(state[role]) for role in ("student", "teacher")},
    }


def _update_train_state(state: dict[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    networks = {"ema" if name == "average" else name: weights for name, weights in state["networks"].items()}
    optimizers = {}
    for name, adam in state["optimizers"].items():
        rows = zip(adam["means"], adam["squares"], adam["steps"], strict=True)
        moments = [{"exp_avg": mean, "exp_avg_sq": square, "step": step.reshape(())} for mean, square, step in rows]
        optimizers[name] = {"state": dict(enumerate(moments))}
    return {"networks": networks, "optimizers": optimizers, "num_averaged": int(state["num_averaged"])}
