"""The proofs about several batches: the right merge and the running average are proved, wrong ones are not."""

import xhat.equations
from xhat.lens.prover import merge_proof


def test_wrong_merges_are_not_proved():
    right = xhat.equations.merge

    def without_the_distance(ma, mu_a, m2_a, mb, mu_b, m2_b):
        return (*right(ma, mu_a, m2_a, mb, mu_b, m2_b)[:2], m2_a + m2_b)

    def with_the_other_weight(ma, mu_a, m2_a, mb, mu_b, m2_b):
        m, _, m2 = right(ma, mu_a, m2_a, mb, mu_b, m2_b)
        return m, mu_a + (mu_b - mu_a) * (ma / m), m2

    def of_equal_sizes(ma, mu_a, m2_a, mb, mu_b, m2_b):
        return right(ma, mu_a, m2_a, ma, mu_b, m2_b)

    for test in (merge_proof._for_every_size, merge_proof._for_small_sizes, merge_proof._in_numbers):
        assert test(right)
        for wrong in (without_the_distance, with_the_other_weight, of_equal_sizes):
            assert not test(wrong)


def test_track_keeps_the_average():
    assert merge_proof.averages(xhat.equations.track)
    assert not merge_proof.averages(lambda running, batch, weight: weight * running + (1 - weight) * batch)
