"""The papers' AUCs that a report shows next to its own: P-KDGAN's Tables IV to VI and CVGAD's Tables 2 and 3."""

from collections.abc import Mapping

NUM_CLASSES = 10
TEACHER_CHANNELS = "64-128-256"
STUDENT_CHANNELS = {"cifar10": "8-16-64", "mnist": "2-4-8", "fashion-mnist": "1-2-4"}
"""Of Table V; CIFAR-10's are those that fit its printed ratios."""

TEACHERS = {"cifar10": 0.7376, "mnist": 0.9780, "fashion-mnist": 0.9311}
DROPS_ALONE = {"cifar10": 0.0315, "mnist": 0.0232, "fashion-mnist": 0.0191}
"""Table V: how far the student that is trained without a teacher is below it."""

STUDENTS = {
    "①": {"cifar10": 0.7159, "mnist": 0.967, "fashion-mnist": 0.9248},
    "②": {"cifar10": 0.7243, "mnist": 0.9675, "fashion-mnist": 0.9241},
    "③": {"cifar10": 0.7094, "mnist": 0.9718, "fashion-mnist": 0.9290},
    "④": {"cifar10": 0.7258, "mnist": 0.9687, "fashion-mnist": 0.9242},
    "②→③": {"cifar10": 0.7305, "mnist": 0.9725, "fashion-mnist": 0.9293},
    "②→④": {"cifar10": 0.7252, "mnist": 0.9667, "fashion-mnist": 0.9257},
}
"""Table VI by structure."""

TEACHERS_BY_CLASS = {
    "cifar10": {
        "airplane": 0.825,
        "automobile": 0.744,
        "bird": 0.703,
        "cat": 0.605,
        "deer": 0.765,
        "dog": 0.652,
        "frog": 0.797,
        "horse": 0.723,
        "ship": 0.827,
        "truck": 0.735,
    },
    "mnist": {
        "0": 0.996,
        "1": 0.999,
        "2": 0.969,
        "3": 0.969,
        "4": 0.970,
        "5": 0.951,
        "6": 0.992,
        "7": 0.982,
        "8": 0.965,
        "9": 0.987,
    },
}
"""Table IV."""

CVGAD = {
    **{
        f"fashion-mnist, gpnd-5fold, {p} % outliers": a
        for p, a in zip((10, 20, 30, 40, 50), (0.921, 0.917, 0.940, 0.946, 0.937), strict=True)
    },
    "coil100, 1 category, 50 % outliers": 0.973,
    "coil100, 4 categories, 25 % outliers": 0.949,
    "coil100, 7 categories, 15 % outliers": 0.938,
}
"""Its Tables 2 and 3 by data and protocol."""


def paper_auc(settings: Mapping[str, str], num_classes: int) -> float | None:
    """The mean AUC that a paper prints for a run's settings; None where it prints none.

    Args:
        settings: ``data``, ``family``, ``structure`` and ``channels``, as ``experiment.run_settings`` names them.
        num_classes: How many classes were measured; the figures are means over all ten.
    """
    data, channels, structure = (settings.get(name, "") for name in ("data", "channels", "structure"))
    if settings.get("family") == "cvgad":
        return CVGAD.get(data) if data.startswith("coil100") or num_classes == NUM_CLASSES else None
    if settings.get("family") != "ede" or num_classes != NUM_CLASSES:
        return None
    if structure == "–" and channels == TEACHER_CHANNELS:
        return TEACHERS.get(data)
    if channels != STUDENT_CHANNELS.get(data):
        return None
    if structure == "–":
        return TEACHERS[data] - DROPS_ALONE[data]
    return STUDENTS.get(structure, {}).get(data)


def paper_auc_of_class(settings: Mapping[str, str], class_name: str) -> float | None:
    """The AUC that Table IV prints for a teacher of one class, given by name or, from 0, by number."""
    by_class = TEACHERS_BY_CLASS.get(settings.get("data", ""), {})
    is_teacher = (settings.get("family"), settings.get("structure"), settings.get("channels"))
    if is_teacher != ("ede", "–", TEACHER_CHANNELS):
        return None
    if class_name.isdecimal() and int(class_name) < len(by_class):
        return list(by_class.values())[int(class_name)]
    return by_class.get(class_name)
