//! Text that came out of files, made fit to be shown: it cannot steer a terminal, nor fill it.

use std::borrow::Cow;

/// The text with characters that steer a terminal (escapes, bells, changes of direction) written as JSON writes them: inside
/// JSON, where they can only be part of a string, the text means the same as before.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown += &format!("\\u{unit:04x}"));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn steers(c: char) -> bool {
    let direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let line = matches!(c, '\u{2028}' | '\u{2029}');
    direction || line || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Characters of a name or a value that a message repeats.
const LONGEST: usize = 200;
/// Characters of a message.
const LONGEST_MESSAGE: usize = 4000;

/// A message in which nothing is repeated at a length that hides the rest: the middle of long values, which stand in backticks,
/// and of long words is left out.
pub(crate) fn shortened(text: &str) -> String {
    let words = |part: &str| part.split(' ').map(|word| cut(word, LONGEST)).collect::<Vec<_>>().join(" ");
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(i, part)| if i % 2 == 1 { cut(part, LONGEST).into_owned() } else { words(part) });
    cut(&parts.collect::<Vec<_>>().join("`"), LONGEST_MESSAGE).into_owned()
}

/// A name for a cell of a table: on one line, and no longer than a message repeats it.
pub(crate) fn cell(name: &str) -> String {
    cut(&name.replace('\n', "\\n"), LONGEST).into_owned()
}

fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let count = text.chars().count();
    if count <= longest {
        return Cow::Borrowed(text);
    }
    let byte = |nth: usize| text.char_indices().nth(nth).map_or(text.len(), |(at, _)| at);
    let (start, end) = (&text[..byte(longest / 2)], &text[byte(count - longest / 2)..]);
    Cow::Owned(format!("{start}[... {} characters ...]{end}", count - longest / 2 * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_instead() {
        assert_eq!(visible("a\u{1b}[31m\u{7}\u{202e}b\r\u{9b}"), r"a\u001b[31m\u0007\u202eb\u000d\u009b");
        assert_eq!(visible("Modèle 模型\n\tnext"), "Modèle 模型\n\tnext");
        let json = serde_json::json!({ "name": "\u{202e}x\u{7f}" });
        let shown: serde_json::Value = serde_json::from_str(&visible(&json.to_string())).unwrap();
        assert_eq!(shown, json);
    }

    #[test]
    fn long_values_lose_their_middle_and_short_messages_nothing() {
        let text = "line 3: `a b` is not a number: models/base/model.safetensors";
        assert_eq!(shortened(text), text);
        let long = shortened(&format!("`{}` is no path of {}", "x y".repeat(1_000_000), "é".repeat(300)));
        assert!(
            long.len() < 1000 && long.contains("2999800 characters") && long.contains("is no path"),
            "{long}"
        );
        assert!(shortened(&"` ".repeat(100_000)).chars().count() < 4100);
    }
}
