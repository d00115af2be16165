"""Loads data sets and files, encodes tables, reads rows on disk, and checks and binarizes data."""

from .._arguments import check_public
from .binarize import Binarization as Binarization
from .binarize import FixedDraw as FixedDraw
from .binarize import Grey as Grey
from .binarize import Redrawn as Redrawn
from .binarize import Threshold as Threshold
from .dataset import Dataset as Dataset
from .dataset import Scaling as Scaling
from .files import Split as Split
from .files import Table as Table
from .files import read_frame as read_frame
from .files import read_idx as read_idx
from .files import read_table as read_table
from .files import split_rows as split_rows
from .kinds import Binary as Binary
from .kinds import Categories as Categories
from .kinds import Count as Count
from .kinds import Kind as Kind
from .kinds import Ordered as Ordered
from .kinds import Positive as Positive
from .kinds import Real as Real
from .kinds import Time as Time
from .sets import digits as digits
from .sets import fashion_mnist as fashion_mnist
from .sets import from_frame as from_frame
from .sets import load as load
from .sets import squares as squares
from .streams import Augmented as Augmented
from .streams import OnDisk as OnDisk
from .streams import RowReader as RowReader
from .streams import chunks as chunks
from .tables import Column as Column
from .tables import Columns as Columns
from .tables import describe as describe
from .text import Layout as Layout

check_public(globals())
