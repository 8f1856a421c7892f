//! Fields of a JSON text by their names. Enough for the documents that the server makes.

/// The text of the object that is the value of `name`, braces included. Enough of JSON for /status.
#[track_caller]
pub fn json_object<'a>(text: &'a str, name: &str) -> &'a str {
    let value = json_value(text, name);
    assert!(value.starts_with('{'), "{name} is no object in {text}");
    let mut depth = 0;
    for (at, character) in value.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &value[..=at];
        }
    }
    panic!("{name} does not end in {text}");
}

/// Everything after `"name":`.
#[track_caller]
pub fn json_value<'a>(text: &'a str, name: &str) -> &'a str {
    let quoted = format!("\"{name}\"");
    let at = text.find(&quoted).unwrap_or_else(|| panic!("no {name} in {text}"));
    text[at + quoted.len()..].trim_start().trim_start_matches(':').trim_start()
}

#[track_caller]
pub fn json_number(text: &str, name: &str) -> u64 {
    let digits: String = json_value(text, name).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{name} is no number in {text}"))
}

#[track_caller]
pub fn json_string<'a>(text: &'a str, name: &str) -> &'a str {
    let value = json_value(text, name);
    assert!(value.starts_with('"'), "{name} is no string in {text}");
    value[1..].split('"').next().unwrap()
}
