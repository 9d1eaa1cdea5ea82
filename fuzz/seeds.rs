//! Writes good images where the fuzz target `load` starts from: `cargo run --bin seeds`.

#[path = "../tests/images/mod.rs"]
mod images;

fn main() -> std::io::Result<()> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/load");
    std::fs::create_dir_all(directory)?;
    for (index, image) in images::one_of_each().iter().enumerate() {
        std::fs::write(format!("{directory}/good-{index}"), [&[0], image.as_slice()].concat())?;
    }
    Ok(())
}
