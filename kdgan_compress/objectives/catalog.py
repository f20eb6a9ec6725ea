"""How each family trains if nobody says otherwise: a name in ``FAMILIES`` to its objective's class."""

from kdgan_compress.objectives.cvgad import CvgadObjective
from kdgan_compress.objectives.ganomaly import GanomalyObjective

OBJECTIVES: dict[str, type[CvgadObjective] | type[GanomalyObjective]] = {
    "cvgad": CvgadObjective,
    "ed": GanomalyObjective,
    "ed_ehat": GanomalyObjective,
    "ede": GanomalyObjective,
}
