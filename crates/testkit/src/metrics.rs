//! Reading of `/metrics`: Prometheus's text format, checked line by line.

use crate::Response;

/// Every sample of a Prometheus text: its name with its labels, and its value.
#[track_caller]
pub fn samples(response: &Response) -> Vec<(String, f64)> {
    let kind = response.header("content-type").unwrap_or_default();
    assert!(
        kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"),
        "Content-Type {kind:?}"
    );
    let text = response.text();
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let word = comment.split_whitespace().next().unwrap_or_default();
            assert!(["TYPE", "HELP", "UNIT", "EOF"].contains(&word), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        assert!(name.starts_with("koltso_"), "{line}");
        samples.push((name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}"))));
    }
    samples
}

/// The value of the sample with this name and these labels, written as the server writes them:
/// `name{label="value"}`.
#[track_caller]
pub fn sample(response: &Response, name: &str) -> f64 {
    let found = samples(response).into_iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("no {name} in\n{}", response.text())).1
}
