//! Builds the guests of `guests/LIST` with the system's `cc` alone, and writes the table that
//! src/guests.rs includes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use list::{Image, Row};

#[path = "guests/list.rs"]
mod list;

/// How a kind of image is compiled and linked.
struct Recipe {
    name: &'static str,
    /// -m16, -m32 or -m64, and what else the compiler must know.
    flags: &'static [&'static str],
    /// Linker script and files that come before the guest's own sources, all in guests/lib.
    script: &'static str,
    start: &'static [&'static str],
    /// A flat file; otherwise ELF.
    flat: bool,
}

#[rustfmt::skip]
const RECIPES: &[Recipe] = &[
    Recipe { name: "boot16", flags: &["-m16", "-Os"], script: "boot.ld", start: &["start16.S", "serial.c"], flat: true },
    Recipe { name: "flat32", flags: &["-m32", "-O2"], script: "flat.ld", start: &["start32.S", "serial.c"], flat: true },
    Recipe { name: "flat64", flags: &["-m64", "-O2"], script: "flat.ld", start: &["start64.S", "serial.c"], flat: true },
];

/// No SSE, no red zone (interrupts use the stack below RSP), nothing that needs a C library.
const FLAGS: &[&str] = &[
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

fn main() {
    println!("cargo::rerun-if-changed=guests");
    if let Err(what) = build() {
        for line in what.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let guests = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("guests");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let text = fs::read_to_string(guests.join("LIST")).map_err(|e| format!("guests/LIST: {e}"))?;
    let rows = list::parse(&text).map_err(|what| format!("guests/LIST: {what}"))?;
    compile_all(&rows, &guests, &out)?;
    fs::write(out.join("guests.rs"), table(&rows, &out)?).map_err(|e| format!("{out:?}: {e}"))
}

fn image_path(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.guest"))
}

/// Compiles every image, as many at a time as there are processors.
fn compile_all(rows: &[Row], guests: &Path, out: &Path) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Image::Build { recipe, sources } = &row.image {
                compile(recipe, sources, guests, &image_path(out, &row.name))
                    .map_err(|what| format!("guest {}: {what}", row.name))?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|worker| worker.join().unwrap())
    })
}

fn compile(recipe: &str, sources: &[String], guests: &Path, output: &Path) -> Result<(), String> {
    let recipe = RECIPES
        .iter()
        .find(|r| r.name == recipe)
        .ok_or(format!("no recipe {recipe} in build.rs"))?;
    let lib = guests.join("lib");
    let mut cc = Command::new("cc");
    cc.args(recipe.flags).args(FLAGS).arg("-I").arg(&lib);
    cc.arg("-T").arg(lib.join(recipe.script));
    cc.arg(if recipe.flat { "-Wl,--oformat=binary" } else { "-Wl,-s" });
    cc.arg("-o").arg(output);
    cc.args(recipe.start.iter().map(|file| lib.join(file)));
    cc.args(sources.iter().map(|file| guests.join(file)));
    let done = cc.output().map_err(|e| {
        format!("cannot start cc: {e} (a C compiler for x86 builds the guests: install gcc)")
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("cc failed: {cc:?}\n{}", String::from_utf8_lossy(&done.stderr)))
}

/// The Rust source of the table: one static an image, shared by its rows, and one item a row.
fn table(rows: &[Row], out: &Path) -> Result<String, String> {
    let mut images = BTreeMap::new();
    let mut statics = String::new();
    let mut items = String::new();
    for (index, row) in rows.iter().enumerate() {
        let image = match &row.image {
            Image::Of(other) => images[other.as_str()],
            Image::Build { .. } => {
                let path = image_path(out, &row.name);
                writeln!(statics, "static IMAGE_{index}: &[u8] = include_bytes!({path:?});")
                    .unwrap();
                index
            }
        };
        images.insert(row.name.as_str(), image);
        let Row { name, args, input, verdict, says, limit, small, not_on, about, image: _ } = row;
        writeln!(
            items,
            "    Guest {{ name: {name:?}, image: IMAGE_{image}, args: &{args:?}, input: {input:?}, \
             verdict: {verdict}, says: &{says:?}, limit: Duration::from_secs({limit}), \
             small: {small}, not_on: &{not_on:?}, about: {about:?} }},"
        )
        .unwrap();
    }
    Ok(format!("{statics}\n/// {DOC}\npub static GUESTS: &[Guest] = &[\n{items}];\n"))
}

const DOC: &str = "Every row of `guests/LIST`, in its order.";
