# A child of a drill: it numbers what it writes, and writes down what it is about to end with.
#
# Arguments: the folder for notes, its name, its kind. In that folder,
# - NAME.ledger gets `begin RUN PID`, `end RUN CODE LINES` and `fault RUN WHAT`, each in one write;
# - NAME.claims has at 16 * RUN the number of the last line that this run has written.
use strict;
use warnings;

my ($notes, $name, $kind) = @ARGV;
my ($run) = $ENV{SUPERVISOR_RS_RUN} =~ m{/(\d+)$};
my ($lines, $term) = (0, 0);
if ($kind eq 'deaf') { $SIG{TERM} = 'IGNORE' }
if ($kind eq 'grace') { $SIG{TERM} = sub { $term = 1 } }

open my $ledger, '>>', "$notes/$name.ledger" or die "ledger: $!";
open my $claims, '+<', "$notes/$name.claims" or die "claims: $!";
note("begin $run $$");

sub note {
    my $text = "$_[0]\n";
    my $written = syswrite $ledger, $text;
    die "ledger: $!" unless defined $written && $written == length $text;
}

sub line {
    my $next = $lines + 1;
    my $text = "$name $run $next\n";
    my $written = syswrite STDOUT, $text;
    unless (defined $written && $written == length $text) {
        note("fault $run output: $!");
        return;
    }
    $lines = $next;
    sysseek $claims, 16 * $run, 0;
    syswrite $claims, sprintf "%15d\n", $lines;
}

# Nothing may come between what it says of its end and its end.
sub finish {
    my ($code) = @_;
    $SIG{TERM} = 'IGNORE';
    note("end $run $code $lines");
    exit $code;
}

sub write_for {
    my ($times, $pause) = @_;
    for (my $count = 0; !defined $times || $count < $times; $count++) {
        line();
        last if $term;
        select undef, undef, undef, $pause;
    }
}

if ($kind eq 'write') {
    write_for(undef, 0.003);
} elsif ($kind eq 'deaf') {
    write_for(undef, 0.02);
} elsif ($kind eq 'grace') {
    write_for(undef, 0.004);
    $term = 0;
    write_for(10 + 10 * ($run % 5), 0.005);
    finish(20 + $run % 50);
} elsif ($kind eq 'brief') {
    write_for(4 + $run * 7 % 10, 0.004);
    finish($run % 7);
} elsif ($kind eq 'fail') {
    write_for(10, 0.005);
    finish($run % 4);
} elsif ($kind eq 'job') {
    write_for(4, 0.004);
    finish(60 + $run % 5);
} elsif ($kind eq 'family') {
    # One of its group does not end when it does, and does not hear TERM.
    defined(my $pid = fork) or die "fork: $!";
    if ($pid == 0) {
        $SIG{TERM} = 'IGNORE';
        select undef, undef, undef, 300;
        exit 0;
    }
    write_for(30, 0.005);
    finish(40) if $run % 2;
    write_for(undef, 0.005);
} else {
    die "no such kind: $kind";
}
