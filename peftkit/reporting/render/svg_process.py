"""The process that draws: Vega-Lite in, a line of JSON each; SVG out, a line of JSON each.

Run by its path, so that it imports vl-convert and nothing else.
"""

import json
import sys

import vl_convert

EMPTY = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "data": {"values": []},
    "mark": "point",
}


def main() -> None:
    """Draw something at once, for the first picture takes as long as ten others."""
    vl_convert.vegalite_to_svg(json.dumps(EMPTY))
    for line in sys.stdin:
        print(json.dumps(vl_convert.vegalite_to_svg(line)), flush=True)


if __name__ == "__main__":
    main()
