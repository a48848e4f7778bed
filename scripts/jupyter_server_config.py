"JupyterLab in .venv cleans notebooks when they are saved, as `nbdev_clean` does; scripts/setup.sh installs this file."

from nbdev.clean import clean_jupyter

c.ContentsManager.pre_save_hook = clean_jupyter  # noqa: F821
