import builtins

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.datasets import load_attributed_images

Image = pytest.importorskip("PIL.Image")

NAMES = ["Bald", "Eyeglasses", "Smiling"]
VALUES = [[-1, 1, -1], [1, -1, -1], [1, 1, -1], [-1, -1, 1]]


def celeba_text(values=VALUES, count=None, names=NAMES):
    """Attributes in CelebA's format, with aligned columns and a trailing space."""
    lines = [str(len(values) if count is None else count), " ".join(names) + " "]
    for index, row in enumerate(values):
        lines.append(f"{index:06d}.png  " + " ".join(f"{value:2d}" for value in row))
    return "\n".join(lines) + "\n"


def csv_text(values=VALUES):
    lines = ["image_id," + ",".join(NAMES)]
    for index, row in enumerate(values):
        lines.append(f"{index:06d}.png," + ",".join(map(str, row)))
    return "\n".join(lines) + "\n"


def pixels(n_images=4, height=6, width=5):
    return np.random.RandomState(0).randint(256, size=(n_images, height, width, 3)).astype(np.uint8)


@pytest.fixture
def faces(tmp_path):
    """A folder of losslessly stored pictures, and a file in CelebA's format."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pixels()):
        Image.fromarray(picture).save(folder / f"{index:06d}.png")
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text(celeba_text())
    return folder, path


@pytest.mark.parametrize("text", [celeba_text(), csv_text(), "\ufeff" + csv_text() + "\n\n"])
def test_reads_pictures_and_attributes(faces, text):
    folder, path = faces
    path.write_text(text, encoding="utf-8")
    found = load_attributed_images(str(folder), str(path))
    assert found.image_shape == (3, 6, 5)
    assert found.data.shape == (4, 90)
    assert found.data.dtype == found.images.dtype == np.float32
    assert found.target.dtype == np.int64
    assert_allclose(found.images, pixels().transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert_array_equal(found.data, found.images.reshape(4, -1))
    assert_array_equal(found.target, np.array(VALUES) == 1)
    assert found.target_names == NAMES
    assert found.filenames == [f"{index:06d}.png" for index in range(4)]


def test_zero_means_no_just_as_minus_one_does(faces):
    folder, path = faces
    path.write_text(csv_text(np.array(VALUES) == 1).replace("True", "1").replace("False", "0"))
    _, target = load_attributed_images(folder, path, return_X_y=True)
    assert_array_equal(target, np.array(VALUES) == 1)


def test_n_images_loads_only_the_first(faces):
    folder, path = faces
    (folder / "000002.png").unlink()
    X, y = load_attributed_images(folder, path, n_images=2, return_X_y=True)
    whole = pixels(4)[:2].transpose(0, 3, 1, 2).reshape(2, -1)
    assert_allclose(X, whole / 255, rtol=1e-6)
    assert_array_equal(y, np.array(VALUES[:2]) == 1)


@pytest.mark.parametrize(
    "crop, rows, columns",
    [(3, slice(1, 4), slice(1, 4)), ((4, 5), slice(1, 5), slice(0, 5)), ([6, 1], slice(6), [2])],
)
def test_crop_is_taken_from_the_centre(faces, crop, rows, columns):
    found = load_attributed_images(*faces, crop=crop)
    expected = pixels()[:, rows][:, :, columns].transpose(0, 3, 1, 2)
    assert_allclose(found.images, expected / 255, rtol=1e-6)


def test_halving_the_size_averages_four_pixels(tmp_path):
    # Bilinear resizing with averaging over the covered area leaves a linear ramp unchanged.
    ramp = np.add.outer(4 * np.arange(16), 6 * np.arange(12)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "000000.png")
    (tmp_path / "attributes.txt").write_text(celeba_text(VALUES[:1]))
    found = load_attributed_images(tmp_path, tmp_path / "attributes.txt", size=(8, 6), color=False)
    assert found.image_shape == (1, 8, 6)
    means = ramp.reshape(8, 2, 6, 2).mean((1, 3))
    assert_allclose(255 * found.images[0, 0, 1:-1, 1:-1], means[1:-1, 1:-1], atol=0.51)


def test_crop_comes_before_size(faces):
    folder, path = faces
    for index in range(4):
        picture = np.zeros((8, 8, 3), dtype=np.uint8)
        picture[2:6, 2:6] = 10 * index + 5
        Image.fromarray(picture).save(folder / f"{index:06d}.png")
    found = load_attributed_images(folder, path, crop=4, size=2)
    expected = np.broadcast_to((10 * np.arange(4) + 5)[:, None], (4, 12)) / 255
    assert_allclose(found.data, expected, rtol=1e-6)


@pytest.mark.parametrize("stored", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_channels_are_as_asked_for_whatever_is_stored(faces, stored):
    folder, path = faces
    picture = Image.fromarray(np.full((6, 5, 3), 255, dtype=np.uint8))
    picture.convert(stored).save(folder / "000001.png")
    found = load_attributed_images(folder, path)
    assert found.image_shape == (3, 6, 5)
    assert_array_equal(found.data[1], 1)
    grey = load_attributed_images(folder, path, color=False)
    assert grey.image_shape == (1, 6, 5)
    luma = pixels()[0] @ [0.299, 0.587, 0.114]
    assert_allclose(255 * grey.images[0, 0], luma, atol=1.01)
    assert_array_equal(grey.data[1], 1)


def test_grey_pictures_have_three_equal_channels_in_colour(faces):
    folder, path = faces
    Image.fromarray(pixels()[0, :, :, 0]).save(folder / "000000.png")
    found = load_attributed_images(folder, path)
    assert_allclose(found.images[0], pixels()[0, :, :, [0, 0, 0]] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: expected the number of pictures"),
        ("faces of people\n", "line 1: expected the number of pictures.*'faces of people'"),
        (celeba_text(count=5), "line 1 says 5 pictures, but 4 follow"),
        (celeba_text(count=3), "line 1 says 3 pictures, but 4 follow"),
        ("0\n", "names of the attributes, without duplicates, on line 2"),
        ("0\nBald\n", "lists no pictures"),
        (
            celeba_text(names=["Bald", "Bald", "Smiling"]),
            r"without duplicates, on line 2.*'Bald', 'Bald'",
        ),
        (celeba_text([*VALUES, [1, 2, -1]]), "line 7: the attribute 'Eyeglasses' must be.*'2'"),
        (csv_text() + "000004.png,1,,1\n", "line 6: the attribute 'Eyeglasses' must be.*''"),
        (celeba_text().replace(" 1 -1 -1", " 1 -1"), "line 4: .* 3 values.*got 2 values"),
        (csv_text() + "000004.png,1,1,1,0\n", "line 6: .* 3 values.*got 4 values"),
        (csv_text() + "000001.png,1,1,1\n", "line 6: 000001.png was already listed on line 3"),
        (csv_text() + '"000004.png,1,1,1\n', "line 6: unexpected end of data"),
    ],
)
def test_errors_in_the_attributes_file_name_the_file_and_line(faces, text, message):
    folder, path = faces
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)list_attr_celeba.txt.*{message}"):
        load_attributed_images(folder, path)


def test_attributes_file_that_is_not_text_is_an_error(faces):
    folder, path = faces
    path.write_bytes(b"4\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"list_attr_celeba.txt is not a UTF-8 text file"):
        load_attributed_images(folder, path)


def test_errors_name_missing_files(faces):
    folder, path = faces
    with pytest.raises(FileNotFoundError, match=r"folder=.*elsewhere"):
        load_attributed_images(folder / "elsewhere", path)
    with pytest.raises(FileNotFoundError, match=r"attributes=.*elsewhere"):
        load_attributed_images(folder, path.parent / "elsewhere")
    (folder / "000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002.png, .* on line 5, does not exist"):
        load_attributed_images(folder, path)


def test_errors_name_damaged_pictures(faces):
    folder, path = faces
    whole = (folder / "000001.png").read_bytes()
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        (folder / "000001.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"000001.png is not an intact picture: "):
            load_attributed_images(folder, path)


def test_sixteen_bit_pictures_are_an_error(faces):
    folder, path = faces
    Image.fromarray(np.full((6, 5), 40_000, dtype=np.uint16)).save(folder / "000001.png")
    with pytest.raises(ValueError, match=r"000001.png .*eight bits"):
        load_attributed_images(folder, path)


def test_pictures_of_different_sizes_need_a_crop_or_a_size(faces):
    folder, path = faces
    Image.fromarray(pixels(height=7)[0]).save(folder / "000001.png")
    message = r"000001.png has 7 by 5 pixels, but the pictures before it have 6 by 5"
    with pytest.raises(ValueError, match=message):
        load_attributed_images(folder, path)
    assert load_attributed_images(folder, path, crop=5).image_shape == (3, 5, 5)
    assert load_attributed_images(folder, path, size=(3, 4)).image_shape == (3, 3, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": 6}, r"000000.png has 6 by 5 pixels, fewer than crop=\(6, 6\)"),
        ({"crop": 0}, "'crop' parameter must be a whole number of at least 1"),
        ({"crop": (2, 3, 4)}, "'crop' parameter must be"),
        ({"size": 2.0}, "'size' parameter must be"),
        ({"size": "64"}, "'size' parameter must be"),
        ({"n_images": 0}, "'n_images' parameter must be a whole number of at least 1"),
        ({"n_images": 5}, "n_images=5 is more than the 4 pictures"),
    ],
)
def test_bad_parameters_raise_an_error(faces, options, message):
    with pytest.raises(ValueError, match=message):
        load_attributed_images(*faces, **options)


def test_without_pillow_the_message_says_what_to_install(faces, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *args, **kwargs):
        if name == "PIL":
            raise ImportError("no PIL here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match=r"needs Pillow .*sklearn-vsc\[images\]"):
        load_attributed_images(*faces)
