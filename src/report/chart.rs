//! Charts of numbers by layer, as SVG: one picture for the model card, the report's page and the browser.
//!
//! A picture brings its own colours for light and dark, so that it can stand alone; on paper it is light. Series differ by mark as
//! well as by colour, and every point says its name and number to whoever points at it or listens.

use serde_json::{Value, json};
use std::fmt::Write;

/// Width and height of a picture, in its own units.
const SIZE: (f64, f64) = (760.0, 300.0);

/// Room around the plot: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (56.0, 16.0, 34.0, 34.0);

/// Height of a line of the legend.
const LEGEND: f64 = 18.0;

/// Characters of the legend that fit a line.
const LEGEND_WIDTH: usize = 98;

/// Series beyond these have the marks of earlier ones, every other time hollow.
const MARKS: usize = 7;

/// Numbers of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What they are.
    pub name: String,
    /// Place on the horizontal axis, what stands there, and the number; those that are none are left out.
    pub points: Vec<(usize, String, f64)>,
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What the numbers are.
    pub vertical: String,
    /// What the places are.
    pub horizontal: String,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Numbers are shares of one, shown in percent.
    pub percent: bool,
    /// Places follow each other, so that lines join them; else each has its name below it.
    pub joined: bool,
}

const STYLE: &str = "\
.c{--t:#1b1d22;--q:#565b66;--l:#d4d7dd;--0:#0b57b5;--1:#b3460f;--2:#13703a;--3:#8a2f8f;--4:#7a5b00;--5:#0b7285;--6:#b3123f;\
font:13px system-ui,sans-serif}\
@media screen and (prefers-color-scheme:dark){.c{--t:#e6e7ea;--q:#a2a8b4;--l:#363b45;--0:#7db4ff;--1:#ff9f6b;--2:#6fd39a;\
--3:#dd9be0;--4:#e2bf57;--5:#6fd3e6;--6:#ff8fa8}}\
.c text{fill:var(--q)}.c .t{fill:var(--t);font-weight:600}.c .g{stroke:var(--l)}.c path{fill:none;stroke-width:1.5}";

impl Chart {
    /// Its numbers, as they are drawn.
    pub fn numbers(&self) -> Value {
        let of = |s: &Series| {
            let points = s.points.iter().map(|(_, name, value)| json!({ "at": name, "value": value }));
            json!({ "name": s.name, "points": points.collect::<Vec<_>>() })
        };
        let series: Vec<Value> = self.series.iter().map(of).collect();
        json!({ "title": self.title, "vertical": self.vertical, "series": series })
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        self.write(&mut svg).unwrap_or_default(); // writing to a String cannot fail
        svg
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        let legend = self.legend();
        let lines = legend.last().map_or(0, |(line, ..)| line + 1) as f64;
        let (width, height) = (SIZE.0, SIZE.1 + LEGEND * lines);
        let axis =
            Axis::of(self.series.iter().flat_map(|s| s.points.iter().map(|p| p.2)).filter(|v| v.is_finite()));
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"c\" role=\"img\" viewBox=\"0 0 {width} {height}\">\
             <title>{}</title><style>{STYLE}</style>",
            text(&self.title)
        )?;
        writeln!(svg, "<text class=\"t\" x=\"0\" y=\"15\">{}</text>", text(&self.title))?;
        let (left, right, top, bottom) = MARGIN;
        for tick in axis.ticks() {
            let y = axis.place(tick);
            writeln!(
                svg,
                "<line class=\"g\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                width - right,
                left - 6.0,
                y + 4.0,
                self.number(tick, axis.step)
            )?;
        }
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            width - right,
            top - 8.0,
            text(&self.vertical)
        )?;
        let last = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).max().unwrap_or(0);
        let inner = width - left - right - 16.0;
        let across = |i: usize| {
            left + 8.0
                + match self.joined {
                    true => inner * i as f64 / last.max(1) as f64,
                    false => inner * (i as f64 + 0.5) / (last + 1) as f64,
                }
        };
        let below = SIZE.1 - bottom + 20.0;
        if self.joined {
            writeln!(svg, "<text x=\"{left}\" y=\"{below}\">{}</text>", text(&self.horizontal))?;
        }
        for (at, name, _) in self.series.first().filter(|_| !self.joined).iter().flat_map(|s| &s.points) {
            writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
                across(*at),
                text(name)
            )?;
        }
        for (i, series) in self.series.iter().enumerate() {
            let points = series.points.iter().filter(|(.., value)| value.is_finite());
            let places: Vec<(f64, f64)> =
                points.clone().map(|(at, _, value)| (across(*at), axis.place(*value))).collect();
            let path = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect::<Vec<_>>().join("L");
            if places.len() > 1 && self.joined {
                writeln!(svg, "<path stroke=\"var(--{})\" opacity=\".55\" d=\"M{path}\"/>", i % MARKS)?;
            }
            for ((x, y), (_, name, value)) in places.iter().zip(points) {
                let label = format!("{name}: {}", self.number(*value, axis.step / 20.0));
                writeln!(svg, "{}", mark(i, *x, *y, &label))?;
            }
        }
        for (line, at, i) in legend {
            let (x, y) = (left + at as f64 * 6.8, SIZE.1 + LEGEND * line as f64 + 8.0);
            writeln!(svg, "{}", mark(i, x, y, ""))?;
            writeln!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", x + 9.0, y + 4.0, text(&self.series[i].name))?;
        }
        svg.push_str("</svg>");
        Ok(())
    }

    /// Line, place in characters, and series of each entry; none where there is but one series.
    fn legend(&self) -> Vec<(usize, usize, usize)> {
        let (mut line, mut at) = (0, 0);
        let mut entries = Vec::new();
        for (i, series) in self.series.iter().enumerate().filter(|_| self.series.len() > 1) {
            let length = series.name.chars().count() + 6;
            if at > 0 && at + length > LEGEND_WIDTH {
                (line, at) = (line + 1, 0);
            }
            entries.push((line, at, i));
            at += length;
        }
        entries
    }

    /// With as many decimals as tell numbers apart that are a step from each other.
    fn number(&self, value: f64, step: f64) -> String {
        let scale = if self.percent { 100.0 } else { 1.0 };
        let decimals = (-(step * scale).log10()).ceil().clamp(0.0, 6.0) as usize;
        format!("{:.decimals$}{}", value * scale, if self.percent { " %" } else { "" })
    }
}

/// The marks of a series, by its number: they differ in shape too.
fn mark(series: usize, x: f64, y: f64, label: &str) -> String {
    let colour = format!("var(--{})", series % MARKS);
    let paint = match series / MARKS % 2 {
        0 => format!("fill=\"{colour}\""),
        _ => format!("fill=\"transparent\" stroke=\"{colour}\" stroke-width=\"1.5\""),
    };
    let title = if label.is_empty() { String::new() } else { format!("<title>{}</title>", text(label)) };
    let polygon = |points: &[(f64, f64)]| {
        let points: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon {paint} points=\"{}\">{title}</polygon>", points.join(" "))
    };
    match series % MARKS {
        1 => polygon(&[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)]),
        2 => polygon(&[(0.0, -4.5), (4.5, 3.5), (-4.5, 3.5)]),
        3 => polygon(&[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)]),
        4 => polygon(&[(0.0, 4.5), (4.5, -3.5), (-4.5, -3.5)]),
        5 => polygon(&[(-5.0, -1.6), (5.0, -1.6), (5.0, 1.6), (-5.0, 1.6)]),
        6 => polygon(&[(-1.6, -5.0), (1.6, -5.0), (1.6, 5.0), (-1.6, 5.0)]),
        _ => format!("<circle {paint} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.8\">{title}</circle>"),
    }
}

/// Text as it stands in XML, on one line.
pub(super) fn text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// The vertical axis: whole steps of 1, 2 or 5 that hold all numbers.
struct Axis {
    least: f64,
    most: f64,
    step: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Axis {
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let (least, most) = if least <= most { (least, most) } else { (0.0, 1.0) };
        // near zero the axis begins there: a length is then what it says
        let least = if least > 0.0 && least < 0.5 * most { 0.0 } else { least };
        let span = if most > least { most - least } else { most.abs().max(1.0) * 0.1 };
        let unit = 10f64.powf((span / 4.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|s| *s >= span / 4.0).unwrap_or(unit);
        let (mut first, mut last) = ((least / step).floor() * step, (most / step).ceil() * step);
        if first == last {
            (first, last) = (first - step, last + step);
        }
        Axis { least: first, most: last, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (least, step) = (self.least, self.step);
        let count = ((self.most - least) / step).round() as usize;
        (0..=count).map(move |i| least + step * i as f64)
    }

    fn place(&self, value: f64) -> f64 {
        let (_, _, top, bottom) = MARGIN;
        let share = (value - self.least) / (self.most - self.least);
        SIZE.1 - bottom - share * (SIZE.1 - top - bottom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Chart {
        let points = values.iter().enumerate().map(|(i, &v)| (i, format!("layer {i}"), v)).collect();
        Chart {
            title: "Scales <of> layers".into(),
            vertical: "beta".into(),
            horizontal: "layers".into(),
            series: vec![
                Series { name: "a & b".into(), points },
                Series { name: "c".into(), points: vec![] },
            ],
            percent: false,
            joined: true,
        }
    }

    #[test]
    fn every_number_is_a_point_with_its_name_and_what_is_none_is_left_out() {
        let svg = chart(&[0.5, 1.5, f64::NAN, 1.0]).svg();
        assert!(svg.contains("<title>layer 1: 1.50</title>") && !svg.contains("layer 2"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3 + 1, "with the one of the legend");
        assert!(svg.contains("Scales &lt;of&gt; layers") && svg.contains("a &amp; b"));
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>"));
    }

    #[test]
    fn axes_hold_all_numbers_in_few_steps() {
        for values in [&[0.1, 0.9][..], &[3.0], &[0.0], &[-2.0, 5.0], &[1e-9, 2e-9], &[1e12, 1.1e12], &[]] {
            let axis = Axis::of(values.iter().copied());
            assert!(values.iter().all(|v| axis.least <= *v && *v <= axis.most), "{values:?}");
            assert!((2..=7).contains(&axis.ticks().count()), "{values:?}: {}", axis.ticks().count());
            assert!(chart(values).svg().contains("<svg"));
        }
    }
}
