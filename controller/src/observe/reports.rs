//! What several servers report of one card, put together so that the servers of one namespace never make a model of
//! another leave.
//!
//! Each namespace is a trust domain. Memory is short only where the reports of every domain say so: of what they say is
//! used the least counts. Domains that differ for a while, in what is used or at once in the size of the card, make the card
//! disputed: nothing is decided by its memory. A report counts only from the node of the card, on which most domains are
//! agreed. The operator can trust namespaces; then their reports alone count.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hush_core::{Gpu, GpuId, Labels, ServerName};

/// Set by the operator on a namespace: `true`, or the name of the node for which its servers are trusted.
pub const TRUSTED_LABEL: &str = "gpu.hush.dev/trusted-reports";

/// Reports are made at different times, and a load takes seconds.
const DISPUTED_AFTER: Duration = Duration::from_secs(10);
/// Reports that are further apart in time are not compared.
const COMPARABLE: Duration = Duration::from_secs(5);
/// What is used may differ by this share of the card.
const TOLERANCE_SHARE: u64 = 16;

/// A card as one server reports it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    pub server: &'a ServerName,
    pub node: &'a str,
    /// The operator trusts the server's namespace, or has named the server.
    pub trusted: bool,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub age: Duration,
}

/// A server whose report does not agree with the others, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OddReport {
    pub server: ServerName,
    pub note: String,
}

#[derive(Debug)]
pub struct CardReports {
    pub gpu: Gpu,
    pub odd: Vec<OddReport>,
}

/// Since when the domains of each card differ.
#[derive(Clone, Debug, Default)]
pub struct Disputes(BTreeMap<GpuId, Instant>);

impl Disputes {
    /// Whether they have differed for long enough.
    fn observe(&mut self, uuid: &GpuId, differ: bool, now: Instant) -> bool {
        if !differ {
            self.0.remove(uuid);
            return false;
        }
        let since = *self.0.entry(uuid.clone()).or_insert(now);
        now.saturating_duration_since(since) >= DISPUTED_AFTER
    }

    pub(super) fn retain(&mut self, known: impl Fn(&GpuId) -> bool) {
        self.0.retain(|uuid, _| known(uuid));
    }
}

/// Whether the operator trusts what the servers of a namespace report from a node.
pub fn is_trusted(labels: Option<&Labels>, node: &str) -> bool {
    labels.and_then(|labels| labels.get(TRUSTED_LABEL)).is_some_and(|value| value == "true" || value == node)
}

/// How reports are judged.
#[derive(Clone, Copy, Debug)]
pub struct Judgement {
    pub now: Instant,
    pub stale_after: Duration,
    /// Nodes are known from where pods run, not from what a person called a server.
    pub compare_nodes: bool,
}

/// `None`: there is no report.
pub fn merge(
    uuid: &GpuId,
    mut reports: Vec<Report<'_>>,
    judgement: Judgement,
    disputes: &mut Disputes,
) -> Option<CardReports> {
    let Judgement { now, stale_after, compare_nodes } = judgement;
    if reports.iter().any(|report| report.age <= stale_after) {
        reports.retain(|report| report.age <= stale_after);
    }
    let mut odd = Vec::new();
    let node = if compare_nodes { node(uuid, &mut reports, &mut odd) } else { basis(&reports).first().map(|r| r.node) };
    let totals: BTreeSet<u64> = basis(&reports).iter().map(|report| report.total_bytes).collect();
    let domains: Vec<Report<'_>> = domains(&reports);

    // The reports that count, and of them the one that decides.
    let counted = domains.iter().filter(|report| counts(report, &domains));
    let decisive = counted.min_by_key(|report| (report.used_bytes, report.age)).copied()?;
    let differing = differing(&domains, &decisive);
    let lasting = disputes.observe(uuid, !differing.is_empty(), now);
    if totals.len() > 1 {
        let sizes = |report: &Report<'_>| format!("{} by {}", report.total_bytes, report.server);
        let sizes: Vec<String> = basis(&reports).iter().map(sizes).collect();
        let note =
            format!("GPU {uuid}: its servers do not agree on its size: {} bytes; it is left alone", sizes.join(", "));
        odd.extend(minority(&basis(&reports), |report| report.total_bytes).map(|server| odd_report(server, &note)));
    } else if lasting {
        let note = format!("GPU {uuid}: its servers do not agree on what is used: {}", amounts(&domains));
        let of_domain = |report: &&Report<'_>| {
            differing.iter().any(|domain| domain.server.namespace() == report.server.namespace())
        };
        odd.extend(reports.iter().filter(of_domain).map(|report| odd_report(report.server, &note)));
    }
    let trusted = decisive.trusted;
    let gpu = Gpu {
        uuid: uuid.clone(),
        node: node.unwrap_or_default().to_owned(),
        total_bytes: decisive.total_bytes,
        used_bytes: decisive.used_bytes,
        sample_age: decisive.age,
        disputed: node.is_none() || totals.len() > 1 || (lasting && !trusted),
    };
    Some(CardReports { gpu, odd })
}

fn odd_report(server: &ServerName, note: &str) -> OddReport {
    OddReport { server: server.clone(), note: note.to_owned() }
}

/// The trusted ones where there are some, else all.
fn basis<'a>(reports: &[Report<'a>]) -> Vec<Report<'a>> {
    let trusted: Vec<Report<'a>> = reports.iter().copied().filter(|report| report.trusted).collect();
    if trusted.is_empty() { reports.to_vec() } else { trusted }
}

fn counts(report: &Report<'_>, domains: &[Report<'_>]) -> bool {
    report.trusted || domains.iter().all(|other| !other.trusted)
}

/// The node that most domains report the card from; `None`: as many are for another. Reports from elsewhere are dropped.
fn node<'a>(uuid: &GpuId, reports: &mut Vec<Report<'a>>, odd: &mut Vec<OddReport>) -> Option<&'a str> {
    let mut domains: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for report in basis(reports) {
        domains.entry(report.node).or_default().insert(report.server.namespace());
    }
    let most = domains.values().map(BTreeSet::len).max()?;
    let mut winners = domains.iter().filter(|(_, domains)| domains.len() == most).map(|(node, _)| *node);
    let (node, tie) = (winners.next()?, winners.next().is_some());
    let elsewhere = |report: &Report<'_>| report.node != node;
    for report in reports.iter().filter(|report| elsewhere(report)) {
        let note =
            format!("GPU {uuid}: others report it from the node {node}, and {} from {}", report.server, report.node);
        odd.push(odd_report(report.server, &note));
    }
    if tie {
        return None;
    }
    reports.retain(|report| !elsewhere(report));
    Some(node)
}

/// One report for each domain: the lower median of what it says is used. The trusted namespaces are one domain.
fn domains<'a>(reports: &[Report<'a>]) -> Vec<Report<'a>> {
    let mut domains: BTreeMap<Option<&str>, Vec<Report<'a>>> = BTreeMap::new();
    for report in reports {
        let domain = (!report.trusted).then(|| report.server.namespace());
        domains.entry(domain).or_default().push(*report);
    }
    let median = |mut reports: Vec<Report<'a>>| {
        reports.sort_by_key(|report| (report.used_bytes, report.age));
        reports.get(reports.len().saturating_sub(1) / 2).copied()
    };
    domains.into_values().filter_map(median).collect()
}

/// The domains that differ from the trusted one, or from the middle of all; of two that differ, both.
fn differing<'a>(domains: &[Report<'a>], decisive: &Report<'a>) -> Vec<Report<'a>> {
    let apart = |one: &Report<'_>, other: &Report<'_>| {
        let comparable = one.age.abs_diff(other.age) <= COMPARABLE;
        comparable && one.used_bytes.abs_diff(other.used_bytes) > other.total_bytes / TOLERANCE_SHARE
    };
    if decisive.trusted {
        return domains.iter().copied().filter(|report| !report.trusted && apart(report, decisive)).collect();
    }
    let mut sorted = domains.to_vec();
    sorted.sort_by_key(|report| report.used_bytes);
    let middle = |at: usize| sorted.get(at).copied();
    let (Some(lower), Some(upper)) = (middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2)) else {
        return Vec::new();
    };
    sorted.into_iter().filter(|report| apart(report, &lower) || apart(report, &upper)).collect()
}

/// Those of whom fewer domains say the same than of others; of as many on each side, all.
fn minority<'r, 'a>(
    reports: &'r [Report<'a>],
    said: fn(&Report<'_>) -> u64,
) -> impl Iterator<Item = &'a ServerName> + 'r {
    let mut domains: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for report in reports {
        domains.entry(said(report)).or_default().insert(report.server.namespace());
    }
    let most = domains.values().map(BTreeSet::len).max().unwrap_or(0);
    let winners: Vec<u64> =
        domains.iter().filter(|(_, domains)| domains.len() == most).map(|(said, _)| *said).collect();
    let agreed = (winners.len() == 1).then(|| winners[0]);
    reports.iter().filter(move |report| Some(said(report)) != agreed).map(|report| report.server)
}

fn amounts(domains: &[Report<'_>]) -> String {
    let amount = |report: &Report<'_>| format!("{} bytes by {}", report.used_bytes, report.server);
    domains.iter().map(amount).collect::<Vec<_>>().join(", ")
}
