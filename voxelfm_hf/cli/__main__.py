import sys

from voxelfm_hf.cli import main

sys.exit(main())
