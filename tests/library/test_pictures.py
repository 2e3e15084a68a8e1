"""Pictures: what lies where, in which window, at what scale; and that no volume, however odd, breaks them."""

import threading

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from voxelfm_hf.data.phantom import LABELS, make_phantom
from voxelfm_hf.pictures import body_centre, picture_planes, save_figure, save_picture
from voxelfm_hf.pictures.layers import FeatureLayer, HeatLayer, LabelLayer, principal_colours, window_grey
from voxelfm_hf.volumes import ScanError, Volume


def marked_volume(*, spacing=(3.0, 1.0, 2.0)):
    """Lung with one bright block in its right (low x), front (low y), upper (high z) corner."""
    hu = np.full((24, 48, 36), -600, np.int16)
    hu[16:24, 0:12, 0:9] = 1300
    return Volume.from_array(hu, spacing=spacing)


def shown(figure, row, column, *, columns=4):
    """The image of a panel as drawn, and its panel's axes."""
    axes = figure.axes[row * columns + column]
    return axes.images[0].get_array(), axes


def letters(axes):
    """Where the orientation letters stand: {letter: (x, y)}."""
    return {t.get_text(): t.get_position() for t in axes.texts if t.get_text() in tuple("RLAPHF")}


def quadrant(image):
    """Row and column half of the brightest corner: ('top' or 'bottom', 'left' or 'right')."""
    grey = np.asarray(image, float)[..., :3].mean(-1)
    rows, columns = np.nonzero(grey > 0.9 * grey.max())
    return (
        "top" if rows.mean() < grey.shape[0] / 2 else "bottom",
        "left" if columns.mean() < grey.shape[1] / 2 else "right",
    )


def test_patient_right_is_left_head_is_up_front_is_top_or_left():
    figure = picture_planes(marked_volume(), position=(20, 5, 4))
    assert [quadrant(shown(figure, 1, c)[0]) for c in range(3)] == [("top", "left")] * 3
    expected = ({"R": "left", "L": "right", "A": "top", "P": "bottom"},
                {"R": "left", "L": "right", "H": "top", "F": "bottom"},
                {"A": "left", "P": "right", "H": "top", "F": "bottom"})  # fmt: skip
    for column, sides in enumerate(expected):
        _, axes = shown(figure, 0, column)
        found = letters(axes)
        assert set(found) == set(sides)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        middle = {"x": (left + right) / 2, "y": (bottom + top) / 2}
        for letter, side in sides.items():
            x, y = found[letter]
            assert {
                "left": x < middle["x"],
                "right": x > middle["x"],
                "top": y < middle["y"],
                "bottom": y > middle["y"],
            }[side]


def test_words_stand_on_a_dark_ground_where_the_scan_is_white(tmp_path):
    white = Volume.from_array(np.full((40, 40, 40), 1500, np.int16), spacing=(4.0, 4.0, 4.0))
    picture = np.asarray(Image.open(save_picture(white, tmp_path / "white.png")).convert("L"), float)
    figure = picture_planes(white)
    figure.canvas.draw()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            if text.get_text() and box.width:
                words = picture[
                    len(picture) - round(box.y1) : len(picture) - round(box.y0), round(box.x0) : round(box.x1)
                ]
                assert np.quantile(words, 0.3) < 110 and words.max() > 150, text.get_text()


def test_the_written_pixels_show_the_marker_beside_r_a_and_h(tmp_path):
    path = save_picture(marked_volume(), tmp_path / "scan.png", position=(20, 5, 4), windows=("bone",))
    picture = np.asarray(Image.open(path).convert("L"), float)
    figure = picture_planes(marked_volume(), position=(20, 5, 4), windows=("bone",))
    height = picture.shape[0]
    for column in range(3):
        image, axes = shown(figure, 0, column)
        left, right, bottom, top = axes.images[0].get_extent()
        (x0, y0), (x1, y1) = axes.transData.transform([(left, bottom), (right, top)])
        panel = picture[round(height - y1) : round(height - y0), round(x0) : round(x1)]
        half = panel.shape[0] // 2, panel.shape[1] // 2
        corners = {
            (i, j): np.median(panel[i * half[0] :, j * half[1] :][: half[0] // 2, : half[1] // 2])
            for i in (0, 1)
            for j in (0, 1)
        }
        assert corners[0, 0] > 200 and max(v for k, v in corners.items() if k != (0, 0)) < 40


def test_all_panels_share_one_scale_in_mm():
    volume = marked_volume(spacing=(8.0, 1.0, 2.0))
    figure = picture_planes(volume)
    figure.canvas.draw()
    for axes in figure.axes:
        origin, across, down = axes.transData.transform([(0, 0), (10, 0), (0, 10)])
        across, down = np.linalg.norm(across - origin), np.linalg.norm(down - origin)
        assert across == pytest.approx(down, rel=0.02)
        assert across == pytest.approx(
            figure.axes[0].transData.transform([(10, 0)])[0, 0] - figure.axes[0].transData.transform([(0, 0)])[0, 0],
            rel=0.02,
        )
    _, coronal = shown(figure, 0, 1)
    assert coronal.images[0].get_extent() == pytest.approx([0, 72, 192, 0])


def test_scale_bar_is_as_long_as_it_says():
    figure = picture_planes(marked_volume())
    for axes in figure.axes:
        text = next(t for t in axes.texts if t.get_text().endswith("mm") and "\n" not in t.get_text())
        bars = [np.ptp(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2]
        assert bars == pytest.approx([float(text.get_text().split()[0])])


def test_windows_map_hu_linearly_between_their_ends():
    hu = np.array([-1350, -600, 150, 900], np.int16)
    assert window_grey(hu, level=-600, width=1500) == pytest.approx([0, 0.5, 1, 1])
    figure = picture_planes(marked_volume(), position=(2, 40, 30))
    grey = [np.asarray(shown(figure, row, 0)[0])[-1, -1, 0] for row in range(3)]
    assert grey == [128, 0, 0]  # -600 HU is the middle of the lung window and black in the others
    captions = [
        next(t.get_text().split("\n")[0] for t in shown(figure, row, 0)[1].texts if " W" in t.get_text())
        for row in range(3)
    ]
    assert captions == ["lung  W1500 L-600", "soft tissue  W400 L40", "bone  W1800 L400"]


def test_position_is_reported_in_scanner_coordinates():
    hu = np.zeros((10, 10, 10), np.int16)
    affine = np.array([[0, 0, 2.0, -30], [0, 2.0, 0, 5], [2.0, 0, 0, -70], [0, 0, 0, 1]])
    figure = picture_planes(Volume.from_array(hu, affine=affine), position=(3, 4, 1))
    texts = [
        [t.get_text() for t in shown(figure, 0, c)[1].texts if "mm" in t.get_text() and "\n" in t.get_text()][0]
        for c in range(3)
    ]
    assert (
        texts[0].endswith("axial 4/10\nF 64.0 mm")
        and texts[1] == "coronal 5/10\nP 13.0 mm"
        and texts[2] == "sagittal 2/10\nR 28.0 mm"
    )


def test_a_region_is_framed_in_every_plane_and_a_long_answer_stands_above_the_panels():
    region = ((16.0, 0.0, 0.0), (24.0, 12.5, 9.0))
    words = "; ".join(f"finding {i} 0.{i:02d} (negative)" for i in range(18))
    figure = picture_planes(marked_volume(), position=(20, 5, 4), region=region, title=words)
    for row in range(3):
        frames = []
        for column in range(3):
            _, axes = shown(figure, row, column)
            (line,) = (line for line in axes.lines if len(line.get_xdata()) == 5)
            x, y = np.array(line.get_xdata()), np.array(line.get_ydata())
            frames.append((x.min(), x.max(), y.min(), y.max()))
        # The block lies to the right, in front and above: left and top in the picture, 2 mm across, 1 mm, 3 mm down.
        assert frames == [(0, 18, 0, 12.5), (0, 18, 0, 24), (0, 12.5, 0, 24)]
    (heading,) = (text for text in figure.texts if "finding 17" in text.get_text())
    assert " ".join(heading.get_text().split()).startswith(words)
    box, panels = heading.get_window_extent(), [axes.get_window_extent() for axes in figure.axes]
    assert box.y0 > max(panel.y1 for panel in panels) - 1 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1


def test_projections_are_maxima():
    volume = marked_volume()
    figure = picture_planes(volume)
    image, _ = shown(figure, 0, 3)
    expected = window_grey(volume.hu.max(1)[::-1], level=400, width=1600)
    assert np.abs(np.asarray(image)[..., 0] / 255 - expected).max() < 0.005
    assert len(picture_planes(volume, projections=False).axes) == 9


def test_phantom_liver_is_on_the_left_of_the_picture():
    phantom = make_phantom(3, shape=(48, 64, 64))
    liver = phantom.mask("liver")
    figure = picture_planes(phantom.volume, labels=liver, label_names={1: "liver"})
    for column in (0, 1):
        image = np.asarray(shown(figure, 1, column)[0]).astype(int)
        coloured = np.ptp(image, axis=-1) > 20
        assert coloured.any() and np.nonzero(coloured)[1].mean() < 0.5 * image.shape[1]
    assert any(t.get_text() == "liver" for t in figure.texts)


def test_labels_choose_the_slices_and_keep_their_colours():
    labels = np.zeros((6, 8, 10), np.uint8)
    labels[4, 1, 2:5], labels[0, 7, 9] = 3, 1
    layer = LabelLayer(labels)
    z, y, x = layer.best_index()
    assert (z, y) == (4, 1) and x in (2, 3, 4)
    colours, opacity = layer.slice(0, 4)
    assert (opacity > 0).sum() == 3 and np.allclose(colours[1, 2], layer.colour_of(3))
    assert not np.allclose(layer.colour_of(3), layer.colour_of(1))
    assert LabelLayer(np.zeros((2, 2, 2), bool)).best_index() is None


def test_heat_is_transparent_where_low_or_nan_and_found_where_high():
    heat = np.zeros((5, 6, 7), np.float32)
    heat[3, 2, 5], heat[1, 1, 1], heat[0] = 4.0, 1.0, np.nan
    layer = HeatLayer(heat)
    assert layer.range == (0, 4) and layer.best_index() == (3, 2, 5)
    assert layer.slice(0, 0)[1].max() == 0
    opacity = layer.slice(0, 3)[1]
    assert opacity[2, 5] == opacity.max() > 0.5 and (opacity > 0).sum() == 1
    assert HeatLayer(np.full((2, 3, 4), np.nan)).best_index() is None
    assert HeatLayer(np.ones((9, 9, 9))).best_index() == (4, 4, 4)


def test_principal_colours_agree_with_scikit_learn():
    features = (np.random.default_rng(0).normal(size=(200, 12)) * np.linspace(5, 1, 12)).astype(np.float32)
    colours, shares = principal_colours(features)
    pca = PCA(3).fit(features.astype(float))
    assert shares == pytest.approx(pca.explained_variance_ratio_, rel=1e-6)
    for c, (loading, score) in enumerate(zip(pca.components_, pca.transform(features).T, strict=True)):
        score = score * np.sign(loading[np.abs(loading).argmax()])
        low, high = np.percentile(score, (2, 98))
        assert np.allclose(colours[:, c], np.clip((score - low) / (high - low), 0, 1), atol=1e-4)


@pytest.mark.parametrize(
    "features", [np.ones((2, 2, 2, 5)), np.zeros((1, 1, 1, 3)), np.random.default_rng(0).normal(size=(2, 3, 2, 2))]
)
def test_features_of_low_rank_still_give_colours(features):
    colours, shares = principal_colours(features)
    assert colours.shape == (*features.shape[:3], 3) and np.isfinite(colours).all() and np.isfinite(shares).all()
    assert (colours[..., 2] == 0.5).all()  # no third component to show


def test_patch_colours_lie_over_the_part_they_come_from():
    hu = np.full((8, 20, 30), 40, np.int16)
    features = np.zeros((2, 2, 3, 4), np.float32)
    features[:, :, 0, 0], features[:, 0, :, 1], features[0, :, :, 2] = 8, 5, 3
    layer = FeatureLayer(features, hu, box=((0, 4.5, 6.0), (8, 16.5, 24.0)))
    colours, opacity = layer.slice(0, 1)
    visible = opacity > 0
    assert visible.any(1).nonzero()[0].tolist() == list(range(4, 17)) and visible.any(0).nonzero()[0].tolist() == list(
        range(6, 24)
    )
    assert colours[14, 8] == pytest.approx(layer.colours[0, 1, 0], abs=1e-5)  # inside the outer half of a corner patch
    between = layer.slice(0, 1)[0][14, 11:14].mean(0)  # voxels round the border of patches 0 and 1
    assert between == pytest.approx((layer.colours[0, 1, 0] + layer.colours[0, 1, 1]) / 2, abs=0.1)
    other = layer.slice(2, 7)[0]
    assert other[1, 14] == pytest.approx(layer.colours[0, 1, 0], abs=1e-5)


def test_air_is_dimmed_and_does_not_define_the_components():
    hu = np.full((8, 8, 16), -1000, np.int16)
    hu[:, :, :8] = 30
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, 4, 8, 6))
    features[:, :, 4:] *= 100  # wild features in air
    layer = FeatureLayer(features, hu)
    body, _ = principal_colours(features[:, :, :4])
    assert np.allclose(layer.colours[:, :, :4], body)
    opacity = layer.slice(0, 3)[1]
    assert opacity[:, 8:].max() < 0.5 * opacity[:, :8].min()


def test_feature_row_is_added_and_coloured():
    volume = marked_volume()
    features = np.random.default_rng(0).normal(size=(3, 4, 4, 7))
    figure = picture_planes(volume, patch_features=features, patch_box=((0, 0, 0), (24, 48, 36)))
    assert len(figure.axes) == 15
    image = np.asarray(figure.axes[12].images[0].get_array()).astype(int)
    assert np.ptp(image, axis=-1).mean() > 10


@pytest.mark.parametrize(
    "shape, spacing",
    [
        ((2, 64, 64), (8, 0.7, 0.7)),
        ((1, 1, 1), (1, 1, 1)),
        ((200, 6, 8), (1, 1, 1)),
        ((3, 90, 2), (5, 0.5, 9)),
        ((1, 40, 40), (0.1, 1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_odd_volumes_are_drawn(shape, spacing, dtype, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)
    path = save_picture(Volume.from_array(hu, spacing=spacing), tmp_path / "odd.png", width_px=600)
    assert Image.open(path).size[0] == 600


@pytest.mark.parametrize("value", [-1024, 0, 3071])
def test_constant_volume_is_drawn(value):
    volume = Volume.from_array(np.full((6, 8, 10), value, np.int16), spacing=(2, 2, 2))
    figure = picture_planes(volume, labels=np.zeros((6, 8, 10), np.uint8), heat=np.zeros((6, 8, 10)), width_px=500)
    assert len(figure.axes) == 12


def test_body_centre_ignores_air():
    hu = np.full((30, 40, 200), -1000, np.int16)
    hu[10:20, 5:15, 150:190] = 50
    assert np.abs(np.array(body_centre(hu)) - (15, 10, 170)).max() <= 3
    assert body_centre(np.full((5, 6, 7), -1000)) == (2, 3, 3)


def test_picture_holds_no_metadata_and_no_name(tmp_path):
    volume = Volume.from_array(np.zeros((8, 8, 8), np.int16), spacing=(1, 1, 1), source="DOE^JANE")
    path = save_picture(volume, tmp_path / "scan.png", width_px=500)
    assert Image.open(path).info == {} and Image.open(path).size[0] == 500
    assert [p.name for p in tmp_path.iterdir()] == ["scan.png"]
    figure = picture_planes(volume)
    texts = [t.get_text() for t in figure.texts] + [t.get_text() for a in figure.axes for t in a.texts]
    assert not any("DOE" in text for text in texts)


def test_same_scan_gives_the_same_file_also_from_threads(tmp_path):
    volume = make_phantom(1, shape=(24, 32, 32)).volume
    threads = [
        threading.Thread(target=save_picture, args=(volume, tmp_path / f"{i}.png"), kwargs={"width_px": 500})
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [(tmp_path / f"{i}.png").read_bytes() for i in range(3)]
    assert files[0] == files[1] == files[2]


def test_nothing_global_is_touched(tmp_path):
    before = dict(matplotlib.rcParams)
    save_picture(marked_volume(), tmp_path / "scan.png", width_px=500)
    assert dict(matplotlib.rcParams) == before


def test_wrong_input_is_refused_in_one_sentence(tmp_path):
    volume = marked_volume()
    with pytest.raises(ScanError, match="labels have shape"):
        picture_planes(volume, labels=np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(ScanError, match="outside the scan"):
        picture_planes(volume, position=(24, 0, 0))
    with pytest.raises(ScanError, match="png"):
        save_picture(volume, tmp_path / "scan.jpg")
    with pytest.raises(ValueError, match="brain"):
        picture_planes(volume, windows=("brain",))
    with pytest.raises(ValueError, match="patch features"):
        picture_planes(volume, patch_features=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="patch box"):
        picture_planes(volume, patch_features=np.ones((2, 2, 2, 4)), patch_box=((0, 0, 0), (0, 4, 4)))
    with pytest.raises(TypeError):
        save_picture(volume, tmp_path / "scan.png", tittle="x")


def test_real_scan_shows_the_liver_side_at_the_left(real_data, tmp_path):
    from voxelfm_hf.volumes import read_volume

    volume = read_volume(real_data / "ct" / "scans" / "totalseg_abdomen_pelvis_3mm.nii.gz")
    figure = picture_planes(volume, position=(100, 50, 61), windows=("soft tissue",))
    coronal = np.asarray(shown(figure, 0, 1)[0])[..., 0].astype(float)
    top = coronal[:14]
    third = top.shape[1] // 3
    assert top[:, third // 2 : third].mean() > top[:, -third : -third // 2].mean()
    assert save_figure(figure, tmp_path / "real.png").stat().st_size < 3_000_000


def test_label_table_is_free_of_gaps_and_doubles():
    assert sorted(LABELS.values()) == list(range(len(LABELS)))
