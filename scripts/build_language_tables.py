"""Rebuild langsamp/languages/tables/aliases.csv and languages.csv from three registry packages.

    python scripts/build_language_tables.py [FOLDER]

FOLDER holds the archives; a missing one is downloaded into it with pip or npm. Without FOLDER, a temporary one is used.
"""

import csv
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from langsamp.core.errors import UserError
from langsamp.core.files import sha256

DATA = Path(__file__).resolve().parents[1] / "langsamp" / "languages" / "tables"
PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
ARCHIVES = {  # Name, sha256, command that downloads it
    "cldr-core-48.2.0.tgz": (
        "5310e0c7a06c1feb83dc8e54c8584bbe0b9c2ea8320172a18d541986b124585d",
        ["npm", "pack", "--silent", "cldr-core@48.2.0"],
    ),
    "python_iso639-2026.7.23-py3-none-any.whl": (
        "d678638207411a02c06f28aa965b8081df0766f59ed311071960161fe3a77af2",
        [*PIP, "python-iso639==2026.7.23"],
    ),
    "urielplus-1.3.2-py3-none-any.whl": (
        "26d99eacf27f5d8f0c5e68eecd4e7bf84adba5eb8c7b4d84f464ae163bc8002e",
        [*PIP, "urielplus==1.3.2"],
    ),
}
SIL, CLDR = "ISO 639-3 code tables (SIL) 2026-07", "CLDR 48.2 languageAlias"
PAPER, VARIANT = "LangSAMP and Glot500 write it so", "ISO 15924: a variant or part of it"
SCRIPTS = {
    **dict.fromkeys(["Hans", "Hant"], ("Hani", PAPER)),
    **dict.fromkeys(["Hira", "Hrkt", "Kana"], ("Jpan", PAPER)),
    "Kore": ("Hang", PAPER),
    **{"Aran": ("Arab", VARIANT), "Cyrs": ("Cyrl", VARIANT), "Geok": ("Geor", VARIANT), "Hanb": ("Hani", VARIANT)},
    **{"Jamo": ("Hang", VARIANT), "Latf": ("Latn", VARIANT), "Latg": ("Latn", VARIANT)},
    **dict.fromkeys(["Syre", "Syrj", "Syrn"], ("Syrc", VARIANT)),
}
# Still in old files and programs; they are hinted at and never accepted
WITHDRAWN = {"iw": "heb", "in": "ind", "ji": "yid", "jw": "jav", "mo": "ron", "bh": "bih", "jaw": "jav"}
CHOSEN = {  # No table names one; each row says why this one
    ("retired", "eml"): ("egl", "chosen here: SIL splits it into egl (Emilian) and rgn (Romagnol)"),
    ("macrolanguage", "nor"): ("nob", "chosen here: what corpora label Norwegian is nearly always Bokmål"),
}


def fetch(folder: Path) -> list[Path]:
    "The checked archives, in the order of `ARCHIVES`; a missing one is downloaded."
    for name, (checksum, command) in ARCHIVES.items():
        if not (folder / name).exists():
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        if sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} does not match its sha256; delete it and run again")
    return [folder / name for name in ARCHIVES]


def rows(wheel: Path, name: str, delimiter: str = ",") -> list[dict[str, str]]:
    "A table inside a wheel."
    with zipfile.ZipFile(wheel) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8-sig")), delimiter=delimiter))


def representatives(cldr: Path, languages: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    "Macrolanguage or group -> (individual language, source), from CLDR."
    with tarfile.open(cldr) as archive:
        aliases = json.load(archive.extractfile("package/supplemental/aliases.json"))
    aliases = aliases["supplemental"]["metadata"]["alias"]["languageAlias"]
    long = {row["Part1"]: code for code, row in languages.items() if row["Part1"]} | {"bh": "bih"}
    found: dict[str, list[str]] = {}
    for one, entry in aliases.items():
        one, other = long.get(one, one), entry["_replacement"].split("-")[0]
        other = long.get(other, other)
        if entry["_reason"] == "macrolanguage" and languages.get(other, {}).get("Scope") == "M":
            found.setdefault(other, []).append(one)
        elif one in ("bih", "hbs"):  # A group, and an entry that names a script too
            found.setdefault(one, []).append(other)
    # Two members claim `aka`: the one with an ISO 639-1 code of its own wins
    best = {macro: min(members, key=lambda m: not languages[m]["Part1"]) for macro, members in found.items()}
    return {macro: (member, CLDR) for macro, member in best.items()}


def alias_rows(cldr: Path, iso639: Path, languages: dict[str, dict[str, str]]) -> list[list[str]]:
    "kind, from, to, source: sorted."
    table = {("script", old): new for old, new in SCRIPTS.items()}
    table |= {("withdrawn", old): (new, "withdrawn from ISO 639-1 or ISO 639-2") for old, new in WITHDRAWN.items()}
    for row in rows(iso639, "iso639/_data/iso-639-3_Retirements.tab", "\t"):
        if row["Change_To"]:
            table["retired", row["Id"]] = (row["Change_To"], SIL)
    table |= {("macrolanguage", macro): new for macro, new in representatives(cldr, languages).items()} | CHOSEN
    return [[*key, *value] for key, value in sorted(table.items())]


def degrees(text: str) -> str:
    "A coordinate in -180...180, to 0.01 degree (about a kilometre); some longitudes come as 0...360."
    return f"{round((float(text) + 180) % 360 - 180, 2):g}" if text else ""


def language_rows(uriel: Path, known: list[str], nearest: dict[str, list[str]]) -> list[list[str]]:
    "iso639_3, glottocode, family, latitude, longitude, facts_of: sorted; `nearest` fills gaps."
    folder = "urielplus/database/urielplus_csvs/"
    glottolog = {row["language_id"]: row for row in rows(uriel, folder + "lang_fam_geo.csv")}
    glottocodes = {row["iso_code"]: row["glottocode"] for row in rows(uriel, folder + "uriel_glottocode_map.csv")}
    table = []
    for code in known:
        source = next((c for c in [code, *nearest.get(code, [])] if glottocodes.get(c) in glottolog), None)
        if source:
            facts = glottolog[glottocodes[source]]
            family = facts["lineage"].split(",")[0] or facts["language_name"]  # An isolate is its own family
            place = [degrees(facts["latitude"]), degrees(facts["longitude"])]
            table.append([code, facts["language_id"], family, *place, "" if source == code else source])
    return sorted(table)


def write(name: str, header: list[str], table: list[list[str]]) -> None:
    "Write a table of langsamp/languages/tables and say how large it is."
    with open(DATA / name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *table])
    print(f"{name}: {len(table)} rows, {(DATA / name).stat().st_size} bytes")


def main(folder: Path) -> None:
    "Build both tables."
    cldr, iso639, uriel = fetch(folder)
    languages = {row["Id"]: row for row in rows(iso639, "iso639/_data/iso-639-3.tab", "\t")}
    aliases = alias_rows(cldr, iso639, languages)
    write("aliases.csv", ["kind", "from", "to", "source"], aliases)
    member = {old: new for kind, old, new, _ in aliases if kind == "macrolanguage"}
    nearest = {macro: [individual] for macro, individual in member.items()}
    for row in rows(iso639, "iso639/_data/iso-639-3-macrolanguages.tab", "\t"):
        nearest.setdefault(row["I_Id"], []).extend([row["M_Id"], member[row["M_Id"]]])
    known = sorted({code for code, row in languages.items() if row["Scope"] != "S"} | set(member))
    header = ["iso639_3", "glottocode", "family", "latitude", "longitude", "facts_of"]
    write("languages.csv", header, language_rows(uriel, known, nearest))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
