//! A doc comment has more than two words: `/// Why.` and `/// The bytes.` say nothing that the name does not. Where the compiler wants a
//! comment, it says what a reader needs, such as the unit, the range, who sets a value or what its absence means. An error whose message
//! explains its fields can say so once: `#[expect(missing_docs, reason = "…")]`.

use super::sources::Sources;

/// Comments with so many words say something.
const MIN_WORDS: usize = 3;

pub(crate) fn check(sources: &Sources) -> Vec<String> {
    let comments = sources.texts().flat_map(|(path, text)| {
        let short = doc_comments(text).into_iter().filter(Comment::is_short);
        short.map(move |Comment { line, words }| {
            format!("{}:{line}: \"{}\" says nothing", path.display(), words.join(" "))
        })
    });
    comments.collect()
}

/// A doc comment, which can have several lines.
struct Comment<'a> {
    /// Number of its first line, from 1.
    line: usize,
    words: Vec<&'a str>,
}

impl Comment<'_> {
    fn is_short(&self) -> bool {
        self.words.len() < MIN_WORDS
    }
}

fn doc_comments(text: &str) -> Vec<Comment<'_>> {
    let mut comments: Vec<Comment<'_>> = Vec::new();
    let mut is_inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let comment = ["///", "//!"].into_iter().find_map(|mark| line.strip_prefix(mark));
        // More slashes make an ordinary comment.
        let comment = comment.filter(|comment| !comment.starts_with('/'));
        if let Some(comment) = comment {
            if !is_inside {
                comments.push(Comment {
                    line: index + 1,
                    words: Vec::new(),
                });
            }
            if let Some(last) = comments.last_mut() {
                last.words.extend(comment.split_whitespace());
            }
        }
        is_inside = comment.is_some();
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<usize> {
        let short = doc_comments(text).into_iter().filter(Comment::is_short);
        short.map(|comment| comment.line).collect()
    }

    #[test]
    fn comments_of_two_words_are_found() {
        let text = "/// Why.\na\n    /// The bytes.\n    b\n//! Two words.\n";
        assert_eq!(check(text), [1, 3, 5]);
    }

    #[test]
    fn longer_and_ordinary_comments_are_not() {
        let text = "/// Length in bytes.\na\n/// One.\n///\n/// And more lines.\nb\n// Why.\n//// Why.\n";
        assert_eq!(check(text), [0; 0]);
    }
}
