//! Where in an object something stands, spelled out only when somebody asks.
//!
//! Most values are in order. A text for each would cost as much as its longest key every time: an
//! object of 3 MB with one long key would keep a processor busy for minutes.

use std::fmt;

/// A place in an object: the steps that lead to it, last one first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trail<'a> {
    parent: Option<&'a Trail<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// Most bytes of a place in words; the rest would help nobody.
const TEXT_MAX: usize = 1024;

impl<'a> Trail<'a> {
    /// The object itself.
    pub(crate) const ROOT: Trail<'static> = Trail {
        parent: None,
        step: Step::Root,
    };

    pub(crate) fn key(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    pub(crate) fn index(&'a self, at: usize) -> Self {
        Self {
            parent: Some(self),
            step: Step::Index(at),
        }
    }

    /// `spec.ports[0].name`; empty for the object itself. Cut where it is absurdly long.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        match self.step {
            Step::Root => {}
            Step::Key(key) if out.is_empty() => out.push_str(shortened(key)),
            Step::Key(key) => *out = format!("{out}.{}", shortened(key)),
            Step::Index(at) => *out = format!("{out}[{at}]"),
        }
    }
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// The beginning of a text from outside, for messages.
pub(crate) fn shortened(text: &str) -> &str {
    match text.char_indices().find(|(at, _)| *at >= TEXT_MAX) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_spelled_as_clients_know_it() {
        let spec = Trail::ROOT.key("spec");
        let ports = spec.key("ports");
        let first = ports.index(0);
        assert_eq!(first.key("name").text(), "spec.ports[0].name");
        assert_eq!(Trail::ROOT.text(), "");
        assert_eq!(
            Trail::ROOT.key(&"é".repeat(TEXT_MAX)).text().len(),
            TEXT_MAX
        );
    }
}
