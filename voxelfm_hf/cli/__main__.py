from voxelfm_hf.cli import main

main()
