"""Configuration of the documentation. Building it needs no network."""

from importlib.metadata import version as installed_version

from sklearn_vsc.datasets import _fashion_mnist

project = "sklearn-vsc"
author = "The sklearn-vsc developers"
copyright = "2026, The sklearn-vsc developers"
release = installed_version("sklearn-vsc")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "literal"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "inherited-members": True}
# The class template lists the members already.
numpydoc_show_class_members = False
# Each parameter documented, and no other; the sections a reader needs.
numpydoc_validation_checks = {"GL08", "PR01", "PR02", "RT01"}
numpydoc_validation_exclude = {
    r"\.__init__$",
    r"\.set_\w+_request$",
    # One sentence with shapes describes what answers to a protocol or is a function of tensors.
    r"^sklearn_vsc\.(latents|likelihoods|networks|solvers)\.",
}

# Examples are run, and one that raises fails the build. Where the pictures of Fashion-MNIST are
# not installed, those that need them are shown without what they print and draw.
_run = "/plot_" if _fashion_mnist.DEBIAN_FOLDER.is_dir() else "/plot_(?!fashion_)"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": _run,
    "ignore_pattern": "^(?!plot_)",  # scripts with arguments are no examples
    # Sections in this order; in each, the shortest example first.
    "subsection_order": [
        "../examples/first_steps",
        "../examples/images",
        "../examples/models",
        "../examples/features",
        "../examples/extending",
    ],
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_vsc",),
    "remove_config_comments": True,
    "capture_repr": (),  # what is printed, not what a last line happens to return
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"sklearn-vsc {version}"
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}


def _skip_what_others_document(app, what, name, obj, skip, options):
    """Leave out members that come from another library; its own pages describe them."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.split(".")[0] in ("sklearn", "skorch", "torch") else None


def setup(app):
    app.connect("autodoc-skip-member", _skip_what_others_document)
