"""The yardsticks of the reading speed read what `read_volume` reads."""

import numpy as np
import pydicom.pixels
import pytest
from typer.testing import CliRunner

from voxelfm_hf.eval.speed import reading as speed_reading
from voxelfm_hf.eval.speed.__main__ import app
from voxelfm_hf.volumes import read_volume


@pytest.mark.parametrize("compression", speed_reading.COMPRESSIONS)
def test_gdcm_reads_the_same_series(tmp_path, compression):
    syntax = speed_reading.COMPRESSIONS[compression]
    if compression != "uncompressed" and not pydicom.pixels.get_encoder(syntax).is_available:
        pytest.skip("needs pyjpegls and pylibjpeg to write compressed test files")
    volume = speed_reading.noisy_ct((5, 64, 48))
    series = tmp_path / "series"
    speed_reading.write_series(series, volume, compression=compression)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in series.iterdir()} == {syntax}
    assert np.array_equal(read_volume(series).hu, volume)
    assert np.array_equal(speed_reading.read_by_gdcm(series), volume)


def test_the_command_prints_a_ratio_for_every_format():
    result = CliRunner().invoke(app, ["reading", "--shape", "4", "64", "64", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert sum("gzip -dc" in line for line in lines) == 2
    assert any("RLE" in line for line in lines) and all("ratio" in line for line in lines)
