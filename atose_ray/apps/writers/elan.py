"""ELAN annotation file (EAF 3.0, Max Planck Institute for Psycholinguistics): a tier per tag."""

import datetime
import mimetypes
from pathlib import Path
from xml.etree import ElementTree

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer

SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


def write(timeline: Timeline) -> bytes:
    """Every event is an annotation whose text is its score; its tier has the tag's name."""
    ElementTree.register_namespace("xsi", SCHEMA_INSTANCE)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    facts = {"AUTHOR": "atose_ray", "DATE": now, "FORMAT": "3.0", "VERSION": "3.0"}
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT", {**facts, f"{{{SCHEMA_INSTANCE}}}noNamespaceSchemaLocation": SCHEMA}
    )
    head = ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    kind = mimetypes.guess_type(timeline.file)[0] or "audio/x-wav"
    place = Path(timeline.file).absolute().as_uri() if "://" not in timeline.file else timeline.file
    ElementTree.SubElement(head, "MEDIA_DESCRIPTOR", {"MEDIA_URL": place, "MIME_TYPE": kind})
    order = ElementTree.SubElement(root, "TIME_ORDER")
    slots = 0
    tiers: dict[str, ElementTree.Element] = {}
    for number, event in enumerate(timeline.events, start=1):
        if event.tag not in tiers:
            tiers[event.tag] = ElementTree.Element("TIER", {"LINGUISTIC_TYPE_REF": "sound", "TIER_ID": event.tag})
        ends = []
        for at_s in (event.start_s, event.end_s):
            slots += 1
            ends.append(f"ts{slots}")
            ElementTree.SubElement(
                order, "TIME_SLOT", {"TIME_SLOT_ID": ends[-1], "TIME_VALUE": str(round(1000 * at_s))}
            )
        facts = {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": ends[0], "TIME_SLOT_REF2": ends[1]}
        place_of = ElementTree.SubElement(tiers[event.tag], "ANNOTATION")
        annotation = ElementTree.SubElement(place_of, "ALIGNABLE_ANNOTATION", facts)
        ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = f"{event.score:.3f}"
    empty = ElementTree.Element("TIER", {"LINGUISTIC_TYPE_REF": "sound", "TIER_ID": "no event"})
    root.extend([tiers[name] for name in sorted(tiers)] or [empty])
    kind_of_tier = {"LINGUISTIC_TYPE_ID": "sound", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", kind_of_tier)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


WRITER = Writer(".eaf", write)
