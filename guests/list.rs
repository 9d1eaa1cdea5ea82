//! Reads `guests/LIST`. Included by build.rs, which compiles what it names, and by the tests of
//! src/guests.rs; knows only text.

/// One row of the table, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub image: Image,
    pub args: Vec<String>,
    pub input: String,
    pub verdict: u8,
    pub says: Vec<String>,
    pub limit: u64,
    pub small: bool,
    pub not_on: Vec<(String, String)>,
    pub about: String,
}

/// Where a row's image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Built by a recipe from these sources.
    Build { recipe: String, sources: Vec<String> },
    /// The image of the row with this name.
    Of(String),
}

const COLUMNS: usize = 10;
const BACKENDS: [&str; 3] = ["kvm_pvm", "kvm_amd", "kvm_intel"];

/// Every row in order; an error names its line.
pub fn parse(text: &str) -> Result<Vec<Row>, String> {
    let mut rows: Vec<Row> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let row = parse_row(line)
            .and_then(|row| check(&rows, row))
            .map_err(|what| format!("line {}: {what}", number + 1))?;
        rows.push(row);
    }
    Ok(rows)
}

fn parse_row(line: &str) -> Result<Row, String> {
    let columns: Vec<&str> = line.split('|').map(str::trim).collect();
    let &[name, image, args, input, verdict, says, limit, set, not_on, about] = &columns[..] else {
        return Err(format!("{} columns instead of {COLUMNS}", columns.len()));
    };
    Ok(Row {
        name: name.to_owned(),
        image: parse_image(image)?,
        args: split_args(args)?,
        input: input.replace("\\n", "\n"),
        verdict: verdict.parse().map_err(|_| format!("verdict {verdict:?}"))?,
        says: split_list(&says.replace("\\n", "\n")),
        limit: limit.parse().map_err(|_| format!("limit {limit:?}"))?,
        small: match set {
            "" => false,
            "small" => true,
            other => return Err(format!("set {other:?}")),
        },
        not_on: split_list(not_on)
            .iter()
            .map(|item| parse_not_on(item))
            .collect::<Result<_, _>>()?,
        about: about.to_owned(),
    })
}

fn check(rows: &[Row], row: Row) -> Result<Row, String> {
    if row.name.is_empty() || row.about.is_empty() {
        return Err("a row needs a name and an about".to_owned());
    }
    if rows.iter().any(|other| other.name == row.name) {
        return Err(format!("{} is there twice", row.name));
    }
    match &row.image {
        Image::Of(other) if !rows.iter().any(|row| row.name == *other) => {
            Err(format!("no row {other} above"))
        }
        _ => Ok(row),
    }
}

fn parse_image(text: &str) -> Result<Image, String> {
    if let Some(name) = text.strip_prefix('@') {
        return Ok(Image::Of(name.to_owned()));
    }
    let (recipe, sources) = text.split_once(':').ok_or(format!("image {text:?}"))?;
    let sources = sources.split_whitespace().map(str::to_owned).collect();
    Ok(Image::Build { recipe: recipe.to_owned(), sources })
}

fn parse_not_on(text: &str) -> Result<(String, String), String> {
    let (backend, reason) = text.split_once(':').ok_or(format!("not on {text:?}"))?;
    if !BACKENDS.contains(&backend) || reason.trim().is_empty() {
        return Err(format!("not on {text:?}: a known backend and a reason"));
    }
    Ok((backend.to_owned(), reason.trim().to_owned()))
}

fn split_list(text: &str) -> Vec<String> {
    text.split(';').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Words separated by spaces; double quotes hold a word together.
fn split_args(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quoted { Err(format!("open quote in {text}")) } else { Ok(words) }
}
