//! The machine as layers, after the textbooks (API, ABI, ISA), with the findings where they belong:
//! what goes past KVM, what stops there, what comes up to ringfence. Called by the page.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::escape;
use crate::audit::report::{Cell, ContextFinding, Ran, Report, Whose};

const WIDTH: u32 = 1040;
const HEIGHT: u32 = 640;
/// Characters of a list's line that fit beside an arrow, and lines of it, of one list and of two.
const LINE: usize = 36;
const LINES: usize = 5;
const HALF: usize = 2;
/// Where nothing of the host's goes along, and where something does.
const GREEN: &str = "#2e7d4f";
const BLUE: &str = "#2f6fbf";
const RED: &str = "#d92d20";

/// The drawing.
pub(super) fn draw(report: &Report) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"The machine as layers\">\n\
         <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" \
         markerHeight=\"7\" orient=\"auto-start-reverse\"><path d=\"M0 0L8 4L0 8z\" \
         fill=\"context-stroke\"/></marker></defs>\n"
    );
    layers(&mut svg, report);
    boundaries(&mut svg);
    program(&mut svg, report);
    kernel(&mut svg, report);
    monitor(&mut svg, report);
    svg += "</svg>\n";
    svg
}

struct Box<'a> {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    fill: &'a str,
    title: &'a str,
    text: &'a str,
}

fn put(svg: &mut String, it: &Box<'_>) {
    let Box { x, y, width, height, fill, title, text } = it;
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" \
         stroke=\"#98a2b3\"/><text x=\"{}\" y=\"{}\" font-size=\"15\" font-weight=\"600\">{}</text>\
         <text x=\"{}\" y=\"{}\" font-size=\"12\">{}</text>",
        x + 12,
        y + 22,
        escape(title),
        x + 12,
        y + 40,
        escape(text)
    );
}

fn layers(svg: &mut String, report: &Report) {
    let host = &report.host;
    let kernel = format!("{}, Linux {}", host.backend, host.kernel);
    let how = |name: &str| {
        let context = report.contexts.iter().find(|context| context.name == name);
        context.map_or("", ContextFinding::how)
    };
    let boxes = [
        Box {
            x: 20,
            y: 20,
            width: 230,
            height: 90,
            fill: "#e9e2fa",
            title: "ringfence",
            text: "the monitor: a program of the host",
        },
        Box {
            x: 20,
            y: 150,
            width: 180,
            height: 110,
            fill: "#f4f6f9",
            title: "its libraries",
            text: "make the system calls",
        },
        Box {
            x: 300,
            y: 20,
            width: 720,
            height: 110,
            fill: "#fdf6ee",
            title: "guest programs, ring 3",
            text: how("long/3"),
        },
        Box {
            x: 340,
            y: 170,
            width: 680,
            height: 90,
            fill: "#fdeedd",
            title: "guest kernel, ring 0",
            text: how("long/0"),
        },
        Box {
            x: 20,
            y: 410,
            width: 1000,
            height: 80,
            fill: "#dcebfb",
            title: "the host's kernel with KVM",
            text: &kernel,
        },
        Box {
            x: 20,
            y: 540,
            width: 1000,
            height: 80,
            fill: "#e3e7ee",
            title: "the processor",
            text: &host.processor,
        },
    ];
    for it in &boxes {
        put(svg, it);
    }
}

/// The interfaces, the host's three and the guest's two, as dashed lines with their names.
fn boundaries(svg: &mut String) {
    let lines = [
        (122, 20, 200, "API: library calls", 24),
        (140, 340, 1020, "ABI: the guest's system calls, as its processor makes them", 352),
        (282, 20, 250, "ABI: system calls, KVM_RUN", 24),
        (515, 20, 1020, "ISA: the host's instructions", 24),
        (282, 300, 1020, "ISA: the guest's, as KVM makes it", 330),
    ];
    for (y, from, to, name, at) in lines {
        let _ = writeln!(
            svg,
            "<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" stroke=\"#475467\" \
             stroke-dasharray=\"6 4\"/><text x=\"{at}\" y=\"{}\" font-size=\"12\" \
             font-style=\"italic\">{name}</text>",
            y + 14
        );
    }
}

fn arrow(svg: &mut String, x: u32, (from, to): (u32, u32), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\" stroke=\"{colour}\" \
         stroke-width=\"3\" marker-end=\"url(#head)\"/>"
    );
}

/// A heading and a list in lines, beside an arrow.
fn list(svg: &mut String, (x, y): (u32, u32), most: usize, head: &str, names: &[&str]) {
    let mut lines = vec![String::new()];
    for name in names {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + name.len() + 2 > LINE {
            lines.push(String::new());
        }
        let last = lines.len() - 1;
        if !lines[last].is_empty() {
            lines[last] += ", ";
        }
        lines[last] += name;
    }
    if lines.len() > most {
        lines.truncate(most);
        lines[most - 1] += " ...";
    }
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"12\" font-weight=\"600\">{}</text>",
        escape(head)
    );
    for (n, line) in lines.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{}\" font-size=\"12\">{}</text>",
            y + 15 * (n as u32 + 1),
            escape(line)
        );
    }
}

/// The names of the instructions whose cell in a context is of a kind.
fn names<'a>(report: &'a Report, context: &str, is: impl Fn(&Cell) -> bool) -> Vec<&'a str> {
    let rows = report.instructions.iter().filter(|row| row.sensitive != "innocuous");
    let fits = |cells: &[Cell]| cells.iter().any(|cell| cell.context == context && is(cell));
    rows.filter(|row| fits(&row.cells)).map(|row| &row.name[..]).collect()
}

fn is_host(cell: &Cell) -> bool {
    cell.seen.as_ref().is_some_and(|seen| seen.whose == Whose::Host)
}

fn is_kvms(cell: &Cell) -> bool {
    matches!(cell.ran, Ran::TrappedKvm | Ran::Emulated)
}

/// Those that go a way, the host's values with them or not: what is written beside the arrow.
struct Way<'a> {
    all: Vec<&'a str>,
    host: Vec<&'a str>,
}

impl<'a> Way<'a> {
    fn of(report: &'a Report, context: &str, goes: fn(&Cell) -> bool) -> Self {
        let all = names(report, context, goes);
        let host = names(report, context, |cell| goes(cell) && is_host(cell));
        Self { all, host }
    }

    fn colour(&self, otherwise: &'static str) -> &'static str {
        if self.host.is_empty() { otherwise } else { RED }
    }

    /// The heading, and which ones are named: those that matter.
    fn words(&self, how: &str) -> (String, &[&'a str]) {
        let count = self.all.len();
        match self.host.len() {
            0 => (format!("{count} {how}"), &self.all),
            host => (format!("{count} {how}, {host} the host's:"), &self.host),
        }
    }
}

/// From ring 3: past KVM to the processor, and into KVM.
fn program(svg: &mut String, report: &Report) {
    let direct = Way::of(report, "long/3", |cell| cell.ran == Ran::Direct);
    let kvm = Way::of(report, "long/3", is_kvms);
    arrow(svg, 308, (130, 540), direct.colour(GREEN));
    let (head, names) = direct.words("direct in ring 3");
    list(svg, (330, 314), HALF, &head, names);
    if !kvm.all.is_empty() {
        arrow(svg, 322, (130, 410), kvm.colour(BLUE));
        let (head, names) = kvm.words("into KVM in ring 3");
        list(svg, (330, 364), HALF, &head, names);
    }
}

/// From ring 0: into KVM, or to the processor.
fn kernel(svg: &mut String, report: &Report) {
    let direct = Way::of(report, "long/0", |cell| cell.ran == Ran::Direct);
    let kvm = Way::of(report, "long/0", is_kvms);
    let emulated =
        report.contexts.iter().any(|context| context.name == "long/0" && context.emulated);
    let how = if emulated { "emulated by KVM in ring 0" } else { "trap into KVM in ring 0" };
    arrow(svg, 588, (260, 410), kvm.colour(BLUE));
    let (head, names) = kvm.words(how);
    list(svg, (596, 314), LINES, &head, names);
    if !direct.all.is_empty() {
        arrow(svg, 818, (260, 540), direct.colour(GREEN));
        let (head, names) = direct.words("direct in ring 0");
        list(svg, (828, 314), LINES, &head, names);
    }
}

/// From KVM up to ringfence; and what the MSRs show.
fn monitor(svg: &mut String, report: &Report) {
    let user = names(report, "long/0", |cell| cell.ran == Ran::TrappedUser);
    arrow(svg, 225, (410, 110), "#6b4fbf");
    list(svg, (24, 318), LINES, "come up to ringfence:", &user);
    let cost = report.costs.iter().find(|cost| cost.name == "out");
    if let Some(cost) = cost {
        let text = format!("an OUT: {:.0} cycles", cost.cycles);
        let _ = writeln!(svg, "<text x=\"24\" y=\"378\" font-size=\"12\">{text}</text>");
    }
    let msrs = report.msrs.iter().filter(|msr| msr.whose == Some(Whose::Host)).count();
    let leaves: BTreeSet<_> = report.cpuid.wrong.iter().map(|leaf| &leaf.leaf).collect();
    let text = format!(
        "CPUID: {} leaves not as told;  MSRs: {msrs} show the host's;  {}",
        leaves.len(),
        help(report)
    );
    let _ =
        writeln!(svg, "<text x=\"330\" y=\"{}\" font-size=\"12\">{}</text>", 450, escape(&text));
}

fn help(report: &Report) -> String {
    let has = |name: &str| {
        let help = report.help.iter().find(|help| help.name.starts_with(name));
        match help.and_then(|help| help.host) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not told",
        }
    };
    format!("VT-x or AMD-V: {};  nested paging: {}", has("VT-x"), has("nested"))
}
