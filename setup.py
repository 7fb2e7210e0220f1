"""Build of dasr-ops; everything that is not about the extension stands in pyproject.toml."""

import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

from dasr_ops_build.extension import BuildExtension, BuildPython, extensions

# models/ and train/ are installed as dasr_ops.models and dasr_ops.train.
package_dir = {"dasr_ops.models": "models", "dasr_ops.train": "train"}
linked = [name for folder in ("models", "train") for name in (folder, f"{folder}.*")]
packages = [
    "dasr_ops",
    *(f"dasr_ops.{name}" for name in find_packages("dasr_ops", exclude=linked)),
    *(f"dasr_ops.{name}" for name in find_packages(".", include=linked)),
]
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "dasr_ops": ["py.typed"],
        "dasr_ops.demo": ["*.png"],
        "dasr_ops.models": ["weights/*"],
        "dasr_ops.train": ["*.toml", "*.json", "presets/*.yml"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    # The limited API has no name for free-threaded Python.
    options={"bdist_wheel": {"py_limited_api": False if free_threaded else "cp310"}},
)
