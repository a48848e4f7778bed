"The package's metadata, read from settings.ini; setuptools asks for this file."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(HERE / "settings.ini", encoding="utf-8")
META = CONFIG["DEFAULT"]
STATUSES = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
LICENSES = {"apache2": "Apache-2.0"}
NAME = META["lib_name"]

setup(
    name=NAME,
    version=META["version"],
    description=META["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    url=META["git_url"],
    project_urls={"Documentation": META["doc_host"] + META["doc_baseurl"]},
    author=META["author"],
    author_email=META["author_email"],
    license=LICENSES[META["license"]],
    keywords=META["keywords"],
    classifiers=[
        f"Development Status :: {STATUSES[META['status']]}",
        f"Intended Audience :: {META['audience']}",
        f"Natural Language :: {META['language']}",
        "Programming Language :: Python :: 3",
    ],
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["languages/tables/*"]},
    python_requires=f">={META['min_python']}",
    install_requires=META["requirements"].split(),
    extras_require={
        key.removesuffix("_requirements"): META[key].split() for key in META if key.endswith("_requirements")
    },
    entry_points={
        "console_scripts": META["console_scripts"].split(),
        "nbdev": [f"{NAME}={META['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
