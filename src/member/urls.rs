//! Nodes speak of each other by the numbers that versions have; people know URLs. Sentences about
//! connections are translated before they are logged or shown.

/// The members' URLs by their numbers.
#[derive(Clone, Debug)]
pub struct UrlsByNumber(Vec<(u16, String)>);

const NODE: &str = "node ";

impl UrlsByNumber {
    pub fn new(members: impl IntoIterator<Item = (u16, String)>) -> Self {
        Self(members.into_iter().collect())
    }

    /// The sentence with the URL of each member for its number. A number that no member has stays.
    pub fn translated(&self, sentence: &str) -> String {
        let mut pieces = sentence.split(NODE);
        let mut text = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (digits, rest) = piece.split_at(piece.bytes().take_while(u8::is_ascii_digit).count());
            let is_word = !text.ends_with(|last: char| last.is_alphanumeric());
            let number = digits.parse::<u16>().ok().filter(|_| is_word);
            let url = number.and_then(|number| self.0.iter().find(|(known, _)| *known == number));
            match url {
                Some((_, url)) => text += url,
                None => text = text + NODE + digits,
            }
            text += rest;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_called_by_their_urls_and_strangers_by_their_numbers() {
        let members = [(24539, "http://a:1".to_owned()), (470, "http://b:1".to_owned())];
        let urls = UrlsByNumber::new(members);
        for (sentence, expected) in [
            ("node 24539 and node 470 have different secrets", "http://a:1 and http://b:1 have different secrets"),
            ("the clock of node 470 is 600 ms ahead", "the clock of http://b:1 is 600 ms ahead"),
            ("node 470 expected node 4", "http://b:1 expected node 4"),
            (
                "node 4705 is not in the --cluster list of node 470",
                "node 4705 is not in the --cluster list of http://b:1",
            ),
            ("a node broke it; node x; anode 470", "a node broke it; node x; anode 470"),
            ("nobody listens", "nobody listens"),
            ("", ""),
        ] {
            assert_eq!(urls.translated(sentence), expected);
        }
    }
}
