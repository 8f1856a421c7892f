//! The table as flags, for clap. Their values are texts here: `given.rs` has the grammars read
//! them, so that a wrong one is refused in the same words wherever it was given.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::table::{AnySetting, Default, Local, TABLE};

/// Values by the names of their settings.
pub(super) type Texts = BTreeMap<&'static str, OsString>;

/// The flags of `koltso serve`, as given.
#[derive(Clone, Debug)]
pub struct Flags(pub(super) Texts);

/// The flags of `koltso local` for its nodes, as given. Those that it chooses itself are known, so
/// that their refusal can say why, and not in its help.
#[derive(Clone, Debug)]
pub struct SharedFlags(pub(super) Texts);

const HOW_TO_SET: &str = "Each flag of a node, such as --max-value, is also an environment variable, KOLTSO_MAX_VALUE, \
and a key in the file of --config, max-value = \"1MiB\". A flag wins over a variable, and a variable over the file.";

fn default_text(setting: &AnySetting) -> String {
    match setting.default {
        Default::Off => String::new(),
        Default::Is("false") => String::new(),
        Default::Is(text) | Default::Follows(text) | Default::Computed(text, _) => format!(" [default: {text}]"),
    }
}

fn argument(setting: &AnySetting) -> Arg {
    let argument = Arg::new(setting.name)
        .long(setting.name)
        .value_name(setting.value)
        .value_parser(value_parser!(OsString))
        .allow_negative_numbers(true)
        .help(setting.meaning() + &default_text(setting))
        .help_heading(setting.group.heading());
    match setting.grammar.implied() {
        // Without the equals sign, the next word would be taken for the value.
        Some(implied) => argument.num_args(0..=1).require_equals(true).default_missing_value(implied),
        None => argument,
    }
}

fn with_arguments(command: Command, hidden: fn(&AnySetting) -> bool) -> Command {
    let arguments = TABLE.iter().map(|setting| argument(setting).hide(hidden(setting)));
    command.args(arguments).after_help(HOW_TO_SET)
}

fn texts(matches: &mut ArgMatches) -> Texts {
    let given = |setting: &&AnySetting| Some((setting.name, matches.remove_one::<OsString>(setting.name)?));
    TABLE.iter().filter_map(given).collect()
}

/// What clap asks of a group of flags, for both.
macro_rules! flags_of_the_table {
    ($flags:ident, $hidden:expr) => {
        impl FromArgMatches for $flags {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Self::from_arg_matches_mut(&mut matches.clone())
            }

            fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(texts(matches)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0.extend(texts(&mut matches.clone()));
                Ok(())
            }
        }

        impl Args for $flags {
            fn augment_args(command: Command) -> Command {
                with_arguments(command, $hidden)
            }

            fn augment_args_for_update(command: Command) -> Command {
                with_arguments(command, $hidden)
            }
        }
    };
}

flags_of_the_table!(Flags, |_| false);
flags_of_the_table!(SharedFlags, |setting| setting.local == Local::Chosen);
