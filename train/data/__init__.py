"""Ground truth: pictures from folders, lists and databases, patches of them, batches of a run."""

from .patches import PatchDataset
from .pictures import detail, read_rgb
from .pool import PairPool
from .sources import open_source
from .stream import BatchStream

__all__ = ["BatchStream", "PairPool", "PatchDataset", "detail", "open_source", "read_rgb"]
