//! Writes XML. Text and values are escaped here and nowhere else; what XML 1.0 cannot hold is refused.

use std::fmt::Write;

/// An element with attributes and either text or children.
#[derive(Debug, Clone)]
pub(crate) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: Option<String>,
    children: Vec<Element>,
}

/// A character that no XML 1.0 document can hold, escaped or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the character {:?} cannot be written in XML", .0)]
pub(crate) struct Unwritable(char);

impl Element {
    /// An empty one.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: None, children: Vec::new() }
    }

    /// With an attribute.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// With a text.
    pub(crate) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// With one more child.
    pub(crate) fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// With more children.
    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    /// The document, indented by two.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub(crate) fn document(&self) -> Result<String, Unwritable> {
        let mut out = String::new();
        self.write(0, &mut out)?;
        Ok(out)
    }

    fn write(&self, depth: usize, out: &mut String) -> Result<(), Unwritable> {
        let indent = "  ".repeat(depth);
        out.push_str(&indent);
        out.push('<');
        out.push_str(self.name);
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("='");
            escape(value, out)?;
            out.push('\'');
        }
        if self.text.is_none() && self.children.is_empty() {
            out.push_str("/>\n");
            return Ok(());
        }
        out.push('>');
        match &self.text {
            Some(text) => escape(text, out)?,
            None => {
                out.push('\n');
                for child in &self.children {
                    child.write(depth + 1, out)?;
                }
                out.push_str(&indent);
            }
        }
        out.push_str("</");
        out.push_str(self.name);
        out.push_str(">\n");
        Ok(())
    }
}

fn escape(text: &str, out: &mut String) -> Result<(), Unwritable> {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // As they are, a reader would make blanks of them in values.
            '\t' | '\n' | '\r' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "&#{};", u32::from(c));
            }
            // XML 1.0, production 2.
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return Err(Unwritable(c)),
            _ => out.push(c),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Element, Unwritable};

    #[test]
    fn elements_nest_and_every_text_is_escaped() {
        let inner = Element::new("name").text("a<b>&'\"\n]]>");
        let document = Element::new("d").with("x", "'/><evil y=\"&amp;\t").child(inner).child(Element::new("e")).document();
        assert_eq!(
            document.expect("writable"),
            "<d x='&apos;/&gt;&lt;evil y=&quot;&amp;amp;&#9;'>\n  <name>a&lt;b&gt;&amp;&apos;&quot;&#10;]]&gt;</name>\n  <e/>\n</d>\n"
        );
    }

    #[test]
    fn what_xml_cannot_hold_is_refused() {
        assert_eq!(Element::new("d").text("a\u{0}").document(), Err(Unwritable('\0')));
        assert_eq!(Element::new("d").with("x", "\u{1b}[0m").document(), Err(Unwritable('\u{1b}')));
        assert!(Element::new("d").text("\u{e4}\u{1f600}").document().is_ok());
    }
}
