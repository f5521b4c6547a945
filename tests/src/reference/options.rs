//! Every option of the programs, as clap knows them.

use std::fmt::Write;

use anyhow::Result;
use clap::{Arg, ArgAction, Command, CommandFactory};
use serde_json::Value;

use super::markdown::{code, marked, table};
use super::{page_head, schema};

const TEXT: &str = "\
What `--help` shows, in one place. How options, variables and the configuration file go together, and how durations and
sizes are written: [configuration](../configuration.md).
";

const FILE: &str = "\
What `hush-server serve --config FILE` reads. Values are written as on the command line, and mean the same; options that are
not here are given as such or as variables. The same for editors: [config.schema.json](../config.schema.json).
";

/// Finds the variable of an option.
type VariableOf = fn(&Arg) -> Option<String>;

pub fn page() -> Result<String> {
    let mut page = page_head("Options", TEXT);

    write_program(&mut page, hush_server::cli::ServerCli::command(), |arg| {
        arg.get_long().map(hush_server::cli::variable)
    })?;
    write_program(&mut page, hush_sidecar::cli::SidecarCli::command(), variable_of_env)?;
    write_program(&mut page, hush_controller::cli::ControllerCli::command(), variable_of_env)?;
    write_file(&mut page)?;
    Ok(page)
}

fn variable_of_env(arg: &Arg) -> Option<String> {
    arg.get_env().and_then(|name| name.to_str()).map(str::to_owned)
}

fn write_program(page: &mut String, mut command: Command, variable_of: VariableOf) -> Result<()> {
    command.build();
    writeln!(page, "\n## {}\n\n{}", command.get_name(), about(&command))?;
    // Those of all subcommands are shown at the command, as before.
    if !command.is_subcommand_required_set() {
        write_arguments(page, &command, false, variable_of)?;
    }

    for subcommand in visible_subcommands(&command) {
        write_command(page, command.get_name(), subcommand, false, variable_of)?;
    }
    Ok(())
}

/// A command and its subcommands. Options that hold for all subcommands are shown at the command alone: with
/// `is_subcommand` they are left out.
fn write_command(
    page: &mut String,
    parent: &str,
    command: &Command,
    is_subcommand: bool,
    variable_of: VariableOf,
) -> Result<()> {
    let name = format!("{parent} {}", command.get_name());
    writeln!(page, "\n### {name}\n\n{}", about(command))?;
    write_arguments(page, command, is_subcommand, variable_of)?;

    visible_subcommands(command).try_for_each(|subcommand| write_command(page, &name, subcommand, true, variable_of))
}

/// The arguments and the options of a command.
fn write_arguments(page: &mut String, command: &Command, is_subcommand: bool, variable_of: VariableOf) -> Result<()> {
    let arguments: Vec<&Arg> = command.get_positionals().collect();
    if !arguments.is_empty() {
        let rows: Vec<_> =
            arguments.iter().map(|arg| vec![code(&value_name(arg)), default_and_meaning(arg).1]).collect();
        write!(page, "\n{}", table(&["argument", "meaning"], &rows))?;
    }

    for (heading, mut options) in options_by_heading(command) {
        options.retain(|arg| !(is_subcommand && arg.is_global_set()));
        if options.is_empty() {
            continue;
        }
        if let Some(heading) = heading {
            writeln!(page, "\n**{heading}**")?;
        }
        let rows: Vec<_> = options.iter().map(|arg| option_row(arg, variable_of)).collect();
        write!(page, "\n{}", table(&["option", "variable", "default", "meaning"], &rows))?;
    }
    Ok(())
}

fn visible_subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set())
}

fn about(command: &Command) -> String {
    marked(&one_line(command.get_long_about().or(command.get_about())))
}

/// The keys of the file that `serve --config` reads.
fn write_file(page: &mut String) -> Result<()> {
    let schema: Value = serde_json::from_str(&hush_server::cli::config::schema())?;
    let plain_name = |name: &str| name.to_owned();
    let keys = |schema: &Value| -> Vec<Vec<String>> {
        schema::field_rows(schema, &plain_name).into_iter().map(|row| vec![row[0].clone(), row[4].clone()]).collect()
    };

    write!(page, "\n## The configuration file\n\n{FILE}\n{}", table(&["key", "meaning"], &keys(&schema)))?;
    for (title, name) in [("models[]", "ModelConfig"), ("models[].defaults", "DecodingDefaults")] {
        write!(page, "\n### {title}\n\n{}", table(&["key", "meaning"], &keys(&schema["$defs"][name])))?;
    }
    Ok(())
}

/// Options by their heading, in the order of the help.
fn options_by_heading(command: &Command) -> Vec<(Option<&str>, Vec<&Arg>)> {
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

/// Whether an option takes no value. Clap's own flags (`--help`) are none of these.
fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count)
}

fn option_row(arg: &Arg, variable_of: VariableOf) -> Vec<String> {
    let (default, meaning) = default_and_meaning(arg);
    let long = arg.get_long().unwrap_or_default();
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();

    let option = match (is_flag(arg), arg.is_require_equals_set()) {
        (true, _) => format!("{short}--{long}"),
        (false, true) => format!("{short}--{long}[={}]", value_name(arg)),
        (false, false) => format!("{short}--{long} {}", value_name(arg)),
    };
    vec![code(&option), variable_of(arg).map(|name| code(&name)).unwrap_or_default(), default, meaning]
}

/// What stands for the value of an option: its choices, or a word in capitals.
fn value_name(arg: &Arg) -> String {
    let choices: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !choices.is_empty() && !is_flag(arg) && choices != ["true", "false"] {
        return choices.join("|");
    }
    arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The default, and the rest of the help. A default that depends on something stands in the help; any other, clap knows.
fn default_and_meaning(arg: &Arg) -> (String, String) {
    let help = one_line(arg.get_long_help().or(arg.get_help()));

    let Some((before, after)) = help.split_once("Default: ") else {
        let defaults = arg.get_default_values().iter().filter_map(|value| value.to_str());
        let defaults: Vec<String> = defaults.filter(|_| !is_flag(arg)).map(code).collect();
        return (defaults.join(", "), marked(&help));
    };

    let (default, after) = after.split_once(". ").unwrap_or((after.trim_end_matches('.'), ""));
    (marked_default(default), marked(format!("{before}{after}").trim()))
}

/// Marks a default of single words as code, since a user types it so.
fn marked_default(default: &str) -> String {
    let words: Vec<&str> = default.split(", ").collect();
    if words.iter().any(|word| word.contains(' ') || *word == "none") {
        return marked(default);
    }
    words.into_iter().map(code).collect::<Vec<_>>().join(", ")
}

/// A help text in one line, with the full stop that clap takes away from a single paragraph.
fn one_line(help: Option<&clap::builder::StyledStr>) -> String {
    let text = help.map(ToString::to_string).unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() || text.ends_with(['.', ':']) { text } else { text + "." }
}
