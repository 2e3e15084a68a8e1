import sys

from voxelfm_hf.data.phantom.scan_set import main

sys.exit(main())
