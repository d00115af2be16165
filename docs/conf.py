"""How Sphinx builds the site; `make docs` runs it with warnings as errors."""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent

# Kernels take no settings from whoever builds, and do not warn that their sockets are local.
profile = Path(tempfile.mkdtemp(prefix="pyro_vae_docs_")) / "profile_default"
profile.mkdir()
(profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'ERROR'\n")
os.environ["IPYTHONDIR"] = str(profile.parent)

# Of the kernels that run the notebooks: figures are shown, and no widget is missed.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
sys.path.insert(0, str(HERE / "extensions"))

project = "pyro_vae"
author = "the pyro_vae developers"
copyright = "the pyro_vae developers"
release = import_module("pyro_vae").__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "reference",
    "generated",
    "mathml",
]
exclude_patterns = ["_build", "extensions"]
html_theme = "furo"
html_title = "pyro_vae"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
templates_path = []
copybutton_prompt_text = r">>> |\.\.\. |\$ "  # not copied, and neither is what is printed
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "github-dark"

default_role = "code"  # docstrings write `name`
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!pyro_vae).*")]  # other libraries have sites of their own
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "params_style")]
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = []

nb_execution_mode = os.environ.get("PYRO_VAE_DOCS_EXECUTION", "force")
nb_execution_excludepatterns = []
nb_execution_timeout = 900  # a busy machine may be slow; the pages take minutes on a quiet one
nb_execution_raise_on_error = False  # a warning, so an error at the end, after all the others
nb_merge_streams = True
os.environ["TQDM_DISABLE"] = "1"  # pages show results, not progress bars
