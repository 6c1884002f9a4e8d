//! Files and names in the documents exist. CONTRIBUTING.md tells writers how to name them.
//!
//! 1. A code span that begins with a folder of the tree is a path and exists.
//! 2. Names directly behind a path are defined there: `crates/secret/src/lib.rs` `expose`, `redact`. Between them stands nothing but a
//!    space, a comma, "and" or an opening parenthesis.
//! 3. In `docs/guarantees.md`, each name in a column "Shown by" is a function of the last path before it in the same cell; where none
//!    is, of the last file named in the section if the cell says "same file", and else of the paths in the text above the table.
//! 4. In `docs/walkthrough/`, each name with an underscore is defined in the last path before it in the same step, and each type
//!    exists, wherever that is.
//! 5. In `docs/pitfalls.md`, each name with an underscore exists, wherever that is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::names::Names;
use super::sources::Sources;

/// Folders with documents.
const DOCUMENTS: [&str; 5] = ["", "docs", "docs/adr", "docs/how-to", "docs/walkthrough"];
/// A code span that begins with one of these is a path of the repository.
const FOLDERS: [&str; 9] = [
    "apps/",
    "crates/",
    "docs/",
    "images/",
    "scripts/",
    "tests/",
    "upstream/",
    "fuzz/",
    "xtask/",
];

pub(crate) fn check(root: &Path, sources: &Sources) -> Result<Vec<String>> {
    let everywhere = Names::below(sources, Path::new(""));
    let mut problems = Vec::new();
    for folder in DOCUMENTS {
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("reading {folder}"))? {
            let document = Path::new(folder).join(entry?.file_name());
            if document.extension().is_some_and(|extension| extension == "md") {
                let title = document.display();
                let text = fs::read_to_string(root.join(&document)).with_context(|| format!("reading {title}"))?;
                for reference in references(&text, Kind::of(&document)) {
                    if let Some(problem) = reference.problem(root, sources, &everywhere) {
                        problems.push(format!("{title}: {problem}"));
                    }
                }
            }
        }
    }
    Ok(problems)
}

/// Which names a document's code spans are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Guarantees,
    Pitfalls,
    Walkthrough,
    Other,
}

impl Kind {
    fn of(document: &Path) -> Self {
        if document == Path::new("docs/guarantees.md") {
            Self::Guarantees
        } else if document == Path::new("docs/pitfalls.md") {
            Self::Pitfalls
        } else if document.starts_with("docs/walkthrough") {
            Self::Walkthrough
        } else {
            Self::Other
        }
    }
}

/// What a document says exists.
#[derive(Debug, PartialEq, Eq)]
enum Reference {
    Path(String),
    /// A name, and where it is defined: in one of these paths.
    Name {
        name: String,
        paths: Vec<String>,
    },
    /// A name that has to say where it is defined, and does not.
    Homeless(String),
    /// A name, wherever it is defined.
    Anywhere(String),
}

impl Reference {
    fn problem(&self, root: &Path, sources: &Sources, everywhere: &Names) -> Option<String> {
        match self {
            Self::Path(path) => (!root.join(path).exists()).then(|| format!("{path} does not exist")),
            Self::Name { name, paths } => {
                let mut places = paths.iter().map(|path| Names::below(sources, Path::new(path)));
                (!places.any(|names| names.has(name))).then(|| format!("no {name} in {}", paths.join(", ")))
            }
            Self::Homeless(name) => Some(format!("{name} does not say in which file it is")),
            Self::Anywhere(name) => (!everywhere.has(name)).then(|| format!("nothing is named {name}")),
        }
    }
}

/// Everything in a document that has to exist.
fn references(text: &str, kind: Kind) -> Vec<Reference> {
    let mut reader = Reader::new(kind);
    Parser::new_ext(text, Options::ENABLE_TABLES).for_each(|event| reader.read(event));
    reader.references
}

/// Where in the document the next code span stands.
struct Reader {
    kind: Kind,
    references: Vec<Reference>,
    /// Paths in the text of this section, outside of tables.
    section_paths: Vec<String>,
    /// The last path in this section.
    last_path: Option<String>,
    /// The last path in this cell, list item or paragraph.
    path: Option<String>,
    /// Whether nothing is between the last path, with its names, and what comes now.
    is_behind_path: bool,
    /// The titles of the table's columns, and the column this is in.
    titles: Vec<String>,
    column: usize,
    is_in_head: bool,
    table_depth: usize,
    item_depth: usize,
}

impl Reader {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            references: Vec::new(),
            section_paths: Vec::new(),
            last_path: None,
            path: None,
            is_behind_path: false,
            titles: Vec::new(),
            column: 0,
            is_in_head: false,
            table_depth: 0,
            item_depth: 0,
        }
    }

    fn read(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                self.section_paths.clear();
                self.last_path = None;
                self.start_block();
            }
            Event::Start(Tag::Item) => {
                self.item_depth += 1;
                self.start_block();
            }
            Event::End(TagEnd::Item) => self.item_depth -= 1,
            Event::Start(Tag::Paragraph) if self.item_depth == 0 => self.start_block(),
            Event::Start(Tag::Table(_)) => {
                self.table_depth += 1;
                self.titles.clear();
            }
            Event::End(TagEnd::Table) => self.table_depth -= 1,
            Event::Start(Tag::TableHead) => self.is_in_head = true,
            Event::End(TagEnd::TableHead) => self.is_in_head = false,
            Event::Start(Tag::TableRow) => self.column = 0,
            Event::Start(Tag::TableCell) => {
                self.start_block();
                if self.is_in_head {
                    self.titles.push(String::new());
                }
            }
            Event::End(TagEnd::TableCell) => self.column += 1,
            Event::Text(text) => self.read_text(&text),
            Event::SoftBreak => {}
            Event::Code(span) => self.read_span(&span),
            _ => self.is_behind_path = false,
        }
    }

    fn start_block(&mut self) {
        self.path = None;
        self.is_behind_path = false;
    }

    fn read_text(&mut self, text: &str) {
        if self.is_in_head
            && let Some(title) = self.titles.last_mut()
        {
            title.push_str(text);
        }
        if self.kind == Kind::Guarantees && text.contains("same file") {
            self.path.clone_from(&self.last_path);
        }
        self.is_behind_path &= matches!(text.trim(), "" | "," | "(" | "and");
    }

    fn read_span(&mut self, span: &str) {
        if is_path(span) {
            self.references.push(Reference::Path(span.to_owned()));
            self.path = Some(span.to_owned());
            self.last_path = Some(span.to_owned());
            self.is_behind_path = true;
            if self.table_depth == 0 {
                self.section_paths.push(span.to_owned());
            }
        } else if let Some(reference) = self.name(span) {
            self.references.push(reference);
        } else {
            self.is_behind_path = false;
        }
    }

    /// The name that a code span is, if it is one that must exist.
    fn name(&self, span: &str) -> Option<Reference> {
        let (is_function, is_type) = (is_function(span), is_type(span));
        // A word without underscore can be anything.
        let is_clear = is_function && span.contains('_');
        match self.kind {
            _ if self.is_behind_path => (is_function || is_type).then(|| self.in_last_path(span, &[])),
            Kind::Guarantees => {
                (is_function && self.is_in_column("Shown by")).then(|| self.in_last_path(span, &self.section_paths))
            }
            Kind::Walkthrough if is_clear => Some(self.in_last_path(span, &[])),
            Kind::Walkthrough if is_type => Some(Reference::Anywhere(span.to_owned())),
            Kind::Pitfalls if is_clear => Some(Reference::Anywhere(span.to_owned())),
            _ => None,
        }
    }

    fn in_last_path(&self, name: &str, otherwise: &[String]) -> Reference {
        let name = name.to_owned();
        match &self.path {
            Some(path) => Reference::Name {
                name,
                paths: vec![path.clone()],
            },
            None if otherwise.is_empty() => Reference::Homeless(name),
            None => Reference::Name {
                name,
                paths: otherwise.to_owned(),
            },
        }
    }

    fn is_in_column(&self, title: &str) -> bool {
        self.table_depth > 0 && self.titles.get(self.column).is_some_and(|known| known == title)
    }
}

fn is_path(span: &str) -> bool {
    let is_path = FOLDERS.iter().any(|folder| span.starts_with(folder));
    is_path && !span.contains(['*', ' ', '<', '{', '\n'])
}

fn is_function(span: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    span.starts_with(|c: char| c.is_ascii_lowercase()) && span.chars().all(is_part)
}

/// `Type`, `Type::Variant` or `Type::function`.
fn is_type(span: &str) -> bool {
    let (name, member) = span.split_once("::").unwrap_or((span, "x"));
    let is_word = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.contains(|c: char| c.is_ascii_lowercase())
        && is_word(name)
        && is_word(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Reference {
        Reference::Path(path.to_owned())
    }

    fn name(name: &str, paths: &[&str]) -> Reference {
        Reference::Name {
            name: name.to_owned(),
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
        }
    }

    #[test]
    fn code_spans_that_are_paths_are_found() {
        let text = "see `crates/secret/src/lib.rs` and `cargo test`, not `crates/*/x` or crates/none";
        assert_eq!(references(text, Kind::Other), [path("crates/secret/src/lib.rs")]);
        assert_eq!(references("```text\n`docs/none`\n```", Kind::Other), []);
    }

    #[test]
    fn names_directly_behind_a_path_are_of_that_file() {
        let text = "`apps/a.rs` (`run`, `Way`), then `kubeadm`; `b` of `apps/b.rs`";
        let expected = [
            path("apps/a.rs"),
            name("run", &["apps/a.rs"]),
            name("Way", &["apps/a.rs"]),
            path("apps/b.rs"),
        ];
        assert_eq!(references(text, Kind::Other), expected);
    }

    #[test]
    fn each_name_of_a_guarantee_has_a_file() {
        let table = "|Promise|Shown by|\n|---|---|\n";
        let rows = "|`verify` is|`apps/a.rs` `one`|\n|x|same file, with `two`|\n|x|`three`|\n";
        let check = |text: &str| references(text, Kind::Guarantees);
        assert_eq!(
            check(&format!("In `tests/e2e`:\n\n{table}{rows}")),
            [
                path("tests/e2e"),
                path("apps/a.rs"),
                name("one", &["apps/a.rs"]),
                name("two", &["apps/a.rs"]),
                name("three", &["tests/e2e"])
            ]
        );
        let homeless = Reference::Homeless("three".into());
        assert_eq!(
            check(&format!("In `tests/e2e`:\n\n# Next\n\n{table}{rows}")).last(),
            Some(&homeless)
        );
    }

    #[test]
    fn each_name_of_a_walkthrough_has_a_file_in_its_step() {
        let text = "1. `apps/a.rs`: here `is_one`, a `Ticket` and `kubeadm`.\n2. `is_two`";
        assert_eq!(
            references(text, Kind::Walkthrough),
            [
                path("apps/a.rs"),
                name("is_one", &["apps/a.rs"]),
                Reference::Anywhere("Ticket".into()),
                Reference::Homeless("is_two".into())
            ]
        );
    }

    #[test]
    fn names_of_a_pitfall_exist_somewhere() {
        let text = "`apps/a.rs` `one`; the test is `is_one`, with `tsc`";
        let expected = [
            path("apps/a.rs"),
            name("one", &["apps/a.rs"]),
            Reference::Anywhere("is_one".into()),
        ];
        assert_eq!(references(text, Kind::Pitfalls), expected);
    }
}
