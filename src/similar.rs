//! Which name was meant by one that does not exist.

/// From here on (1 is the same word) a name counts as a slip of the other: one letter in three.
const SIMILAR: f64 = 0.66;

/// The candidate that is most like `word`, if one is so like it that it was probably meant.
pub fn most_similar<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let rated = candidates.map(|name| (strsim::normalized_damerau_levenshtein(&word, name), name));
    let best = rated.filter(|(rating, _)| *rating >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, name)| name)
}

/// The end of a sentence about `word`: `; did you mean listen?`, or nothing.
pub fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    most_similar(word, candidates).map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_a_letter_or_two_has_a_suggestion_and_another_word_has_none() {
        let names = ["listen", "data", "node", "max-value", "max-connections"];
        let meant = |word: &str| most_similar(word, names.into_iter());
        for (word, name) in [("lisen", "listen"), ("max-walue", "max-value"), ("nodes", "node"), ("DTAA", "data")] {
            assert_eq!(meant(word), Some(name), "{word}");
        }
        assert_eq!(did_you_mean("gte", ["get", "put"].into_iter()), "; did you mean get?");
        for word in ["seed", "colour", "storage", "", "port"] {
            assert_eq!(meant(word), None, "{word}");
        }
    }
}
