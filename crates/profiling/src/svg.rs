//! A flame graph as one SVG file, drawn by inferno, for reports and places where a page is too
//! much.
//!
//! Colours say where a frame runs, as on the pages: blue is the kernel, grey-green Rust's own
//! library, violet a label, grey a thread, orange the rest. A capture without samples becomes a
//! picture that says so. Tested in `tests/text.rs`.

use crate::capture::Capture;
use crate::text;
use inferno::flamegraph::color::{Color, PaletteMap};
use inferno::flamegraph::{self, Options};

/// The colour of threads and of the frame below them.
const GREY: Color = Color { r: 0xd5, g: 0xd8, b: 0xdd };

/// A flame graph of one value; `value` is an index of [`Capture::types`].
#[must_use]
pub fn flamegraph(capture: &Capture, title: &str, value: usize) -> String {
    let folded = text::folded(capture, value);
    let mut palette = PaletteMap::default();
    for line in folded.lines() {
        let stack = line.rsplit_once(' ').map_or(line, |(stack, _)| stack);
        let mut names = stack.split(';');
        names.next().map(|thread| palette.insert(thread, GREY));
        for name in names {
            palette.insert(name, colour(name));
        }
    }
    // The frame below all threads has one of these names in inferno.
    palette.insert("", GREY);
    palette.insert("all", GREY);
    let subtitle = text::summary(capture).lines().next().map(str::to_owned);
    draw(&folded, title, subtitle, &capture.types[value].unit, Some(&mut palette))
}

/// What changed from one capture to another, as shares of their totals: red is more, blue less. The
/// widths are those of the new one.
#[must_use]
pub fn difference(base: &Capture, new: &Capture, title: &str) -> String {
    draw(&text::folded_difference(base, new), title, None, &new.types[new.default_type].unit, None)
}

fn draw(folded: &str, title: &str, subtitle: Option<String>, unit: &str, palette: Option<&mut PaletteMap>) -> String {
    let mut options = Options::default();
    title.clone_into(&mut options.title);
    options.subtitle = subtitle;
    unit.clone_into(&mut options.count_name);
    options.image_width = Some(1200);
    // In per cent: frames narrower than half a pixel are not drawn, which keeps the file small.
    options.min_width = 0.04;
    options.palette_map = palette;
    options.deterministic = true;
    options.bgcolors = Some(flamegraph::color::BackgroundColor::Flat(Color { r: 0xfb, g: 0xfb, b: 0xf9 }));
    let mut svg = Vec::new();
    // If there is nothing to show, inferno writes a picture that calls this an error, and fails;
    // our picture does not.
    match flamegraph::from_lines(&mut options, folded.lines(), &mut svg) {
        Ok(()) => String::from_utf8(svg).expect("inferno writes what it was given, which was UTF-8"),
        Err(_) => empty(title),
    }
}

fn empty(title: &str) -> String {
    format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n<svg version=\"1.1\" width=\"1200\" height=\"90\" viewBox=\"0 0 1200 90\" \
         xmlns=\"http://www.w3.org/2000/svg\"><rect width=\"100%\" height=\"100%\" fill=\"#fbfbf9\"/>\
         <text x=\"600\" y=\"35\" font-family=\"sans-serif\" font-size=\"17\" text-anchor=\"middle\">{}</text>\
         <text x=\"600\" y=\"65\" font-family=\"sans-serif\" font-size=\"13\" text-anchor=\"middle\">no samples</text></svg>\n",
        crate::markup::escaped(title)
    )
}

fn colour(name: &str) -> Color {
    let (r, g, b) = match name {
        _ if name.ends_with("_[k]") => (0x9f, 0xbf, 0xe0),
        _ if name.starts_with("lock:") || name.starts_with("wait:") => (0xcb, 0xb2, 0xdd),
        _ if is_standard(name) => (0xb4, 0xcd, 0xb4),
        _ if name.ends_with("_[i]") => (0xf3, 0xd3, 0x9b),
        _ => (0xee, 0xb4, 0x77),
    };
    // Neighbouring frames differ a little, and a name has the same colour in every picture.
    let shift = (name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte)) % 17) as u8;
    Color { r: r - shift, g: g - shift, b: b - shift }
}

/// Whether a frame belongs to Rust's own library.
pub(crate) fn is_standard(name: &str) -> bool {
    let name = name.trim_start_matches(['<', '&']);
    ["core::", "std::", "alloc::", "__rust_"].iter().any(|prefix| name.starts_with(prefix))
}
