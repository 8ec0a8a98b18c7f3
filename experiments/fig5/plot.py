"""Figure 5: men. Trade-off over ranks and iterations with fits, and rank 1 over iterations, with the rivals.

python -m experiments.fig5.plot [FOLDER ...] [out=DIR]
"""

import sys
from functools import partial

from experiments.fig3.plot import make
from experiments.shown import show

if __name__ == "__main__":
    show("fig5", partial(make, class_noun="man", name="fig5"), sys.argv[1:])
