import sys

from voxelfm_hf.training.report.stages import main

sys.exit(main())
