//! Merges the reports of several servers on one GPU, so that the servers of one namespace cannot cause an unload of another
//! namespace's model.
//!
//! Each namespace is a trust domain. Memory counts as short only where the reports of every domain say so: of the used
//! memory that the domains report, the lowest figure counts. A GPU is disputed, and no decision rests on its memory, where
//! the domains differ in its size, or for a while in its used memory. A report counts only if it comes from the node of the
//! GPU, which is the node that most domains report. The operator can mark namespaces as trusted; then only their reports
//! count.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hush_core::{GpuId, Labels, ObservedGpu, ServerName};

/// A label that the operator sets on a namespace: `true`, or the name of the node for which its servers are trusted.
pub const TRUSTED_LABEL: &str = "gpu.hush.dev/trusted-reports";

/// How long domains must differ before a GPU is disputed: reports are made at different times, and a load takes seconds.
const DISPUTED_AFTER: Duration = Duration::from_secs(10);
/// Reports that are further apart in time are not compared.
const COMPARABLE: Duration = Duration::from_secs(5);
/// Reports agree while their used memory differs by at most this fraction (one sixteenth) of the GPU.
const TOLERANCE_FRACTION: u64 = 16;

/// A GPU as one server reports it.
#[derive(Clone, Copy, Debug)]
pub struct GpuReport<'a> {
    pub server: &'a ServerName,
    pub node: &'a str,
    /// The operator trusts the server's namespace, or has named the server.
    pub is_trusted: bool,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub age: Duration,
}

/// A server whose report disagrees with those of others, and the message for users.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DisagreeingReport {
    pub server: ServerName,
    pub note: String,
}

#[derive(Debug)]
pub struct MergedReport {
    pub gpu: ObservedGpu,
    pub disagreeing: Vec<DisagreeingReport>,
}

/// Since when the domains of each GPU differ.
#[derive(Clone, Debug, Default)]
pub struct DisputeTracker(BTreeMap<GpuId, Instant>);

impl DisputeTracker {
    /// Records whether the domains differ now. Returns whether they have differed for long enough.
    fn observe(&mut self, uuid: &GpuId, differ: bool, now: Instant) -> bool {
        if !differ {
            self.0.remove(uuid);
            return false;
        }

        let since = *self.0.entry(uuid.clone()).or_insert(now);
        now.saturating_duration_since(since) >= DISPUTED_AFTER
    }

    pub(super) fn retain(&mut self, is_known: impl Fn(&GpuId) -> bool) {
        self.0.retain(|uuid, _| is_known(uuid));
    }
}

/// Whether the operator trusts what the servers of a namespace report from a node.
pub fn is_trusted(labels: Option<&Labels>, node: &str) -> bool {
    labels.and_then(|labels| labels.get(TRUSTED_LABEL)).is_some_and(|value| value == "true" || value == node)
}

#[derive(Clone, Copy, Debug)]
pub struct MergeSettings {
    pub now: Instant,
    pub stale_after: Duration,
    /// Whether the nodes are those on which pods run, and not names that the operator gave to servers.
    pub compare_nodes: bool,
}

/// Merges the reports on one GPU; `None`: there is no report.
pub fn merge(
    uuid: &GpuId,
    mut reports: Vec<GpuReport<'_>>,
    settings: MergeSettings,
    disputes: &mut DisputeTracker,
) -> Option<MergedReport> {
    let MergeSettings { now, stale_after, compare_nodes } = settings;
    if reports.iter().any(|report| report.age <= stale_after) {
        reports.retain(|report| report.age <= stale_after);
    }

    let mut disagreeing = Vec::new();
    let node = if compare_nodes {
        retain_node(uuid, &mut reports, &mut disagreeing)
    } else {
        trusted_or_all(&reports).first().map(|report| report.node)
    };
    let sizes: BTreeSet<u64> = trusted_or_all(&reports).iter().map(|report| report.total_bytes).collect();
    let domains: Vec<GpuReport<'_>> = domain_reports(&reports);

    let counted = domains.iter().filter(|report| counts(report, &domains));
    let decisive = counted.min_by_key(|report| (report.used_bytes, report.age)).copied()?;
    let differing = differing_domains(&domains, &decisive);
    let is_lasting = disputes.observe(uuid, !differing.is_empty(), now);

    if sizes.len() > 1 {
        disagreeing.extend(size_disagreements(uuid, &reports));
    } else if is_lasting {
        let note = format!("GPU {uuid}: its servers do not agree on what is used: {}", used_by_server(&domains));
        let is_of_differing_domain = |report: &&GpuReport<'_>| {
            differing.iter().any(|domain| domain.server.namespace() == report.server.namespace())
        };
        let reports = reports.iter().filter(is_of_differing_domain);
        disagreeing.extend(reports.map(|report| disagreeing_report(report.server, &note)));
    }

    let gpu = ObservedGpu {
        uuid: uuid.clone(),
        node: node.unwrap_or_default().to_owned(),
        total_bytes: decisive.total_bytes,
        used_bytes: decisive.used_bytes,
        sample_age: decisive.age,
        disputed: node.is_none() || sizes.len() > 1 || (is_lasting && !decisive.is_trusted),
    };
    Some(MergedReport { gpu, disagreeing })
}

fn disagreeing_report(server: &ServerName, note: &str) -> DisagreeingReport {
    DisagreeingReport { server: server.clone(), note: note.to_owned() }
}

/// The trusted reports where there are some, otherwise all reports.
fn trusted_or_all<'a>(reports: &[GpuReport<'a>]) -> Vec<GpuReport<'a>> {
    let trusted: Vec<GpuReport<'a>> = reports.iter().copied().filter(|report| report.is_trusted).collect();
    if trusted.is_empty() { reports.to_vec() } else { trusted }
}

fn counts(report: &GpuReport<'_>, domains: &[GpuReport<'_>]) -> bool {
    report.is_trusted || domains.iter().all(|other| !other.is_trusted)
}

/// The node from which most domains report the GPU; `None`: two nodes have as many domains. Keeps only the reports from
/// that node, and adds the servers of all others to `disagreeing`.
fn retain_node<'a>(
    uuid: &GpuId,
    reports: &mut Vec<GpuReport<'a>>,
    disagreeing: &mut Vec<DisagreeingReport>,
) -> Option<&'a str> {
    let mut domains_by_node: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for report in trusted_or_all(reports) {
        domains_by_node.entry(report.node).or_default().insert(report.server.namespace());
    }

    let most = domains_by_node.values().map(BTreeSet::len).max()?;
    let mut winners = domains_by_node.iter().filter(|(_, domains)| domains.len() == most).map(|(node, _)| *node);
    let (node, is_tie) = (winners.next()?, winners.next().is_some());

    let is_elsewhere = |report: &GpuReport<'_>| report.node != node;
    for report in reports.iter().filter(|report| is_elsewhere(report)) {
        let note =
            format!("GPU {uuid}: others report it from the node {node}, and {} from {}", report.server, report.node);
        disagreeing.push(disagreeing_report(report.server, &note));
    }

    if is_tie {
        return None;
    }
    reports.retain(|report| !is_elsewhere(report));
    Some(node)
}

/// One report for each domain: the lower median by used memory. All trusted namespaces together are one domain.
fn domain_reports<'a>(reports: &[GpuReport<'a>]) -> Vec<GpuReport<'a>> {
    let mut domains: BTreeMap<Option<&str>, Vec<GpuReport<'a>>> = BTreeMap::new();
    for report in reports {
        let domain = (!report.is_trusted).then(|| report.server.namespace());
        domains.entry(domain).or_default().push(*report);
    }

    let lower_median = |mut reports: Vec<GpuReport<'a>>| {
        reports.sort_by_key(|report| (report.used_bytes, report.age));
        reports.get(reports.len().saturating_sub(1) / 2).copied()
    };
    domains.into_values().filter_map(lower_median).collect()
}

/// The domains whose used memory differs from that of the trusted domain, or from the median of all domains. Where two
/// domains differ from each other, the result has both.
fn differing_domains<'a>(domains: &[GpuReport<'a>], decisive: &GpuReport<'a>) -> Vec<GpuReport<'a>> {
    let differs = |one: &GpuReport<'_>, other: &GpuReport<'_>| {
        let is_comparable = one.age.abs_diff(other.age) <= COMPARABLE;
        is_comparable && one.used_bytes.abs_diff(other.used_bytes) > other.total_bytes / TOLERANCE_FRACTION
    };
    if decisive.is_trusted {
        return domains.iter().copied().filter(|report| !report.is_trusted && differs(report, decisive)).collect();
    }

    let mut sorted = domains.to_vec();
    sorted.sort_by_key(|report| report.used_bytes);
    let at = |index: usize| sorted.get(index).copied();
    let (Some(lower), Some(upper)) = (at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2)) else {
        return Vec::new();
    };
    sorted.into_iter().filter(|report| differs(report, &lower) || differs(report, &upper)).collect()
}

/// The servers whose reported size is not the one that most domains report.
fn size_disagreements(uuid: &GpuId, reports: &[GpuReport<'_>]) -> Vec<DisagreeingReport> {
    let reports = trusted_or_all(reports);
    let sizes: Vec<String> =
        reports.iter().map(|report| format!("{} by {}", report.total_bytes, report.server)).collect();
    let note =
        format!("GPU {uuid}: its servers do not agree on its size: {} bytes; it is left alone", sizes.join(", "));

    minority_by_size(&reports).map(|server| disagreeing_report(server, &note)).collect()
}

/// The servers whose size is reported by fewer domains than another size. Where several sizes have the most domains, the
/// result has all servers.
fn minority_by_size<'r, 'a>(reports: &'r [GpuReport<'a>]) -> impl Iterator<Item = &'a ServerName> + 'r {
    let mut domains_by_size: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for report in reports {
        domains_by_size.entry(report.total_bytes).or_default().insert(report.server.namespace());
    }

    let most = domains_by_size.values().map(BTreeSet::len).max().unwrap_or(0);
    let winners = domains_by_size.iter().filter(|(_, domains)| domains.len() == most);
    let winners: Vec<u64> = winners.map(|(size, _)| *size).collect();
    let agreed = (winners.len() == 1).then(|| winners[0]);
    reports.iter().filter(move |report| Some(report.total_bytes) != agreed).map(|report| report.server)
}

fn used_by_server(domains: &[GpuReport<'_>]) -> String {
    let used = |report: &GpuReport<'_>| format!("{} bytes by {}", report.used_bytes, report.server);
    domains.iter().map(used).collect::<Vec<_>>().join(", ")
}
