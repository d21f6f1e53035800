// Counts what the warps of a launch ask of memory: bank conflicts and sectors.
//
// The fibers of a warp run one after another, so that a request of the warp has to be put together:
// it is what its lanes do at one place of the code the same number of times since all met at a
// barrier. Where lanes go round a loop differently often, the counts are estimates.
//
// Shared memory has 32 banks of 4 bytes. A request of 4 bytes a lane takes as many wavefronts as
// the most words that one bank is asked for; 8 bytes go in two halves of the warp, 16 in quarters.
// Global memory moves sectors of 32 bytes: a request needs at least those that hold its bytes.
#include "machine.h"

#include <algorithm>
#include <map>

namespace cudacpu {
unsigned sampled_blocks;

namespace {

constexpr unsigned BANKS = 32, WORD = 4, SECTOR = 32;

struct Place {
    const void* code;
    bool shared;
    bool operator<(const Place& other) const {
        return code != other.code ? code < other.code : shared < other.shared;
    }
};

// The requests of all warps at one place of the code. `asked`: 0 where a lane asks nothing,
// addresses are counted from 1.
struct Site {
    bool write;
    unsigned bytes;
    std::vector<unsigned> turns;                // of every thread, since all met
    std::vector<std::vector<uintptr_t>> asked;  // [warp][turn * WARP + lane]
    unsigned long long requests, taken, ideal;
};
std::map<Place, Site> sites;

unsigned distinct(std::vector<uintptr_t>& values) {
    std::sort(values.begin(), values.end());
    return std::unique(values.begin(), values.end()) - values.begin();
}

// Wavefronts of the lanes [begin, end), which go together; 0 where none asks anything.
unsigned wavefronts(const uintptr_t* asked, unsigned begin, unsigned end, unsigned bytes) {
    std::vector<uintptr_t> of_bank[BANKS];
    for (unsigned lane = begin; lane < end; ++lane)
        for (unsigned at = 0; asked[lane] && at < bytes; at += WORD) {
            const uintptr_t word = (asked[lane] - 1 + at) / WORD;
            of_bank[word % BANKS].push_back(word);
        }
    unsigned most = 0;
    for (std::vector<uintptr_t>& words : of_bank) most = std::max(most, distinct(words));
    return most;
}

void add_request(Site& site, bool shared, const uintptr_t* asked) {
    ++site.requests;
    if (shared) {
        const unsigned together = WARP / std::max(1u, site.bytes / WORD);
        for (unsigned begin = 0; begin < WARP; begin += together) {
            const unsigned needed = wavefronts(asked, begin, begin + together, site.bytes);
            site.taken += needed;
            site.ideal += needed > 0;
        }
        return;
    }
    std::vector<uintptr_t> sectors, bytes;
    for (unsigned lane = 0; lane < WARP; ++lane)
        for (unsigned at = 0; asked[lane] && at < site.bytes; ++at) {
            bytes.push_back(asked[lane] - 1 + at);
            sectors.push_back(bytes.back() / SECTOR);
        }
    site.taken += distinct(sectors);
    site.ideal += (distinct(bytes) + SECTOR - 1) / SECTOR;
}

}  // namespace

void count_access(const void* address, unsigned bytes, bool write, bool shared, const void* code) {
    Site& site = sites[{code, shared}];
    site.write = write;
    site.bytes = bytes;
    site.turns.resize(MAX_THREADS);
    site.asked.resize(MAX_THREADS / WARP);
    std::vector<uintptr_t>& asked = site.asked[current->linear / WARP];
    const unsigned turn = site.turns[current->linear]++;
    if (asked.size() < (turn + 1) * WARP) asked.resize((turn + 1) * WARP);
    asked[turn * WARP + current->linear % WARP] = reinterpret_cast<uintptr_t>(address) + 1;
}

void count_meeting() {
    for (auto& [place, site] : sites) {
        for (std::vector<uintptr_t>& asked : site.asked) {
            for (size_t turn = 0; turn < asked.size(); turn += WARP)
                add_request(site, place.shared, &asked[turn]);
            asked.clear();
        }
        std::fill(site.turns.begin(), site.turns.end(), 0);
    }
}
}  // namespace cudacpu

extern "C" {
// From the next launch on run so many blocks of it, evenly spaced, and count; 0: as usual.
void cudacpu_sample(unsigned blocks) {
    cudacpu::sampled_blocks = blocks;
    cudacpu::sites.clear();
}

struct cudacpu_Traffic {
    size_t offset;  // of the code in this library, for addr2line
    unsigned shared, write, bytes;
    unsigned long long requests, taken, ideal;
};

// Write what was counted to `found`, which has room for `size` sites; returns how many there are.
unsigned cudacpu_traffic(cudacpu_Traffic* found, unsigned size) {
    unsigned count = 0;
    for (const auto& [place, site] : cudacpu::sites) {
        if (count < size)
            found[count] = {cudacpu::offset_of(place.code), place.shared, site.write, site.bytes,
                            site.requests, site.taken, site.ideal};
        ++count;
    }
    return count;
}
}
