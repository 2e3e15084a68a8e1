"""The errors a user can cause; each message is one sentence: which file, what is wrong, what to do."""


class VoxelFMError(Exception):
    """Something the user can fix; the command line prints it without a traceback and exits with 2."""


class ScanError(VoxelFMError):
    """A scan that cannot be read, or must not be trusted."""


class StoreError(VoxelFMError):
    """A feature store that cannot be opened, continued or written."""


class LabelError(VoxelFMError):
    """Labels that are missing, contradictory or do not match the scans."""


class DatasetError(VoxelFMError):
    """A published data set that is not there, or not laid out as it is published."""


class RecipeError(VoxelFMError):
    """A recipe or option with an unknown field or an impossible value."""


class ModelError(VoxelFMError):
    """A checkpoint or model folder that cannot be loaded or does not fit."""


class ReleaseError(VoxelFMError):
    """A folder that must not or cannot go to the Hub as it is."""


class CardError(VoxelFMError):
    """A card that lacks something it has to say."""
