#include "pagegrad/pagegrad.hpp"
#include "tools/commands.h"

#include <iostream>

int main(int argc, char **argv) {
    CLI::App program("Gradients through a paged KV cache", "pagegrad");
    program.set_version_flag("--version", pagegrad_version());
    program.require_subcommand(1);
    pagegrad::Action action;
    pagegrad::add_run_command(program, action);
    pagegrad::add_info_command(program, action);
    pagegrad::add_demo_command(program, action);
    try {
        program.parse(argc, argv);
        return action();
    } catch (const CLI::ParseError &error) {
        return program.exit(error) == 0 ? 0 : 2;
    } catch (const pagegrad::BadInput &error) {
        std::cerr << "pagegrad: " << error.what() << "\n";
        return 2;
    } catch (const pagegrad::Error &error) {
        std::cerr << "pagegrad: " << error.what() << "\n";
        return error.status() == PAGEGRAD_INVALID_ARGUMENT ? 2 : 1;
    } catch (const std::exception &error) {
        std::cerr << "pagegrad: " << error.what() << "\n";
        return 1;
    }
}
