import sys

from voxelfm_hf.training.pretrain.loop import main

sys.exit(main())
