//! Every option of both programs, as clap knows them.

use std::fmt::Write;

use anyhow::Result;
use clap::{Arg, ArgAction, Command, CommandFactory};
use serde_json::Value;

use super::markdown::{code, marked, table};
use super::{head, schema};

const TEXT: &str = "\
What `--help` tells, in one place. How options, variables and the configuration file go together, and how durations and
sizes are written: [configuration](../configuration.md).
";

const FILE: &str = "\
What `hush-server serve --config FILE` reads. Values are written as on the command line, and mean the same; options that are
not here are given as such or as variables. The same for editors: [config.schema.json](../config.schema.json).
";

/// The variable of an option.
type Variable = fn(&Arg) -> Option<String>;

pub fn page() -> Result<String> {
    let mut page = head("Options", TEXT);
    program(&mut page, hush_server::cli::ServerCli::command(), |arg| arg.get_long().map(hush_server::cli::variable))?;
    program(&mut page, hush_controller::cli::Cli::command(), |arg| {
        arg.get_env().and_then(|name| name.to_str()).map(str::to_owned)
    })?;
    file(&mut page)?;
    Ok(page)
}

fn program(page: &mut String, mut command: Command, variable: Variable) -> Result<()> {
    command.build();
    writeln!(page, "\n## {}\n\n{}", command.get_name(), about(&command))?;
    for part in visible(&command) {
        describe(page, command.get_name(), part, false, variable)?;
    }
    Ok(())
}

/// A command, and what is below it, where options for all of them are not repeated.
fn describe(page: &mut String, above: &str, command: &Command, below: bool, variable: Variable) -> Result<()> {
    let name = format!("{above} {}", command.get_name());
    writeln!(page, "\n### {name}\n\n{}", about(command))?;
    let inputs: Vec<&Arg> = command.get_positionals().collect();
    if !inputs.is_empty() {
        let rows: Vec<_> = inputs.iter().map(|arg| vec![code(&value(arg)), explained(arg).1]).collect();
        write!(page, "\n{}", table(&["argument", "meaning"], &rows))?;
    }
    for (heading, mut options) in groups(command) {
        options.retain(|arg| !(below && arg.is_global_set()));
        if options.is_empty() {
            continue;
        }
        if let Some(heading) = heading {
            writeln!(page, "\n**{heading}**")?;
        }
        let rows: Vec<_> = options.iter().map(|arg| row(arg, variable)).collect();
        write!(page, "\n{}", table(&["option", "variable", "default", "meaning"], &rows))?;
    }
    visible(command).try_for_each(|part| describe(page, &name, part, true, variable))
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set())
}

fn about(command: &Command) -> String {
    marked(&text(command.get_long_about().or(command.get_about())))
}

/// The keys of the file that `serve --config` reads.
fn file(page: &mut String) -> Result<()> {
    let schema: Value = serde_json::from_str(&hush_server::cli::config::schema())?;
    let none = |name: &str| name.to_owned();
    let keys = |schema: &Value| -> Vec<Vec<String>> {
        schema::fields(schema, &none).into_iter().map(|row| vec![row[0].clone(), row[4].clone()]).collect()
    };
    write!(page, "\n## The configuration file\n\n{FILE}\n{}", table(&["key", "meaning"], &keys(&schema)))?;
    for (title, name) in [("models[]", "ModelConfig"), ("models[].defaults", "DecodingDefaults")] {
        write!(page, "\n### {title}\n\n{}", table(&["key", "meaning"], &keys(&schema["$defs"][name])))?;
    }
    Ok(())
}

/// Options by their heading, in the order of the help.
fn groups(command: &Command) -> Vec<(Option<&str>, Vec<&Arg>)> {
    let mut groups: Vec<(Option<&str>, Vec<&Arg>)> = Vec::new();
    for arg in command.get_opts().chain(command.get_arguments().filter(|arg| is_flag(arg))) {
        let heading = arg.get_help_heading();
        match groups.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, options)) => options.push(arg),
            None => groups.push((heading, vec![arg])),
        }
    }
    groups.sort_by_key(|(heading, _)| heading.is_some());
    groups
}

/// Without a value, and clap's own neither.
fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count)
}

fn row(arg: &Arg, variable: Variable) -> Vec<String> {
    let (default, meaning) = explained(arg);
    let long = arg.get_long().unwrap_or_default();
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let option = match (is_flag(arg), arg.is_require_equals_set()) {
        (true, _) => format!("{short}--{long}"),
        (false, true) => format!("{short}--{long}[={}]", value(arg)),
        (false, false) => format!("{short}--{long} {}", value(arg)),
    };
    vec![code(&option), variable(arg).map(|name| code(&name)).unwrap_or_default(), default, meaning]
}

/// What stands for its value.
fn value(arg: &Arg) -> String {
    let choices: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !choices.is_empty() && !is_flag(arg) && choices != ["true", "false"] {
        return choices.join("|");
    }
    arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The default, and the rest of the help. The server tells the default in its text, since a variable or a file may set it.
fn explained(arg: &Arg) -> (String, String) {
    let help = text(arg.get_long_help().or(arg.get_help()));
    let known = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect::<Vec<_>>().join(",");
    let known = if known.is_empty() || is_flag(arg) { String::new() } else { code(&known) };
    let Some((before, after)) = help.split_once("Default: ") else { return (known, marked(&help)) };
    let (default, after) = after.split_once(". ").unwrap_or((after.trim_end_matches('.'), ""));
    (typed(default), marked(format!("{before}{after}").trim()))
}

/// A default of single words is what one would type.
fn typed(default: &str) -> String {
    let words: Vec<&str> = default.split(", ").collect();
    if words.iter().any(|word| word.contains(' ') || *word == "none") {
        return marked(default);
    }
    words.into_iter().map(code).collect::<Vec<_>>().join(", ")
}

/// In one line; clap takes the full stop of a single paragraph away.
fn text(help: Option<&clap::builder::StyledStr>) -> String {
    let text = help.map(ToString::to_string).unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() || text.ends_with(['.', ':']) { text } else { text + "." }
}
