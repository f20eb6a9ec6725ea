"""How each family trains if nobody says otherwise: a name in ``FAMILIES`` to its objective's class."""

from kdgan_compress.gans.cvgad_objective import CvgadObjective
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective

OBJECTIVES: dict[str, type[CvgadObjective] | type[GanomalyObjective]] = {
    "cvgad": CvgadObjective,
    "ed": GanomalyObjective,
    "ed_ehat": GanomalyObjective,
    "ede": GanomalyObjective,
}
